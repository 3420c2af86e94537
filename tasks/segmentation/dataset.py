"""Segmentation samples: read from a table of rows, augmented for training, and batched."""

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.decode import SampleError, cell_name, read_image, read_mask
from data.masks import MaskRule, UnknownValueError, looks_smoothed
from data.samples import ReaderDataset, RowReader, collate
from data.stream import SampleKey, sample_randomness
from tasks.segmentation.outlines import draw_mask, drawing_of


class Reader(RowReader):
    """The images and masks of a split, as they are stored.

    Args:
        rows: with the columns image and annotation.
        rule: maps a decoded mask to class ids.
        resize_masks: give masks the size of their images, where they have another.
    """

    def __init__(self, rows: datasets.Dataset, rule: MaskRule, resize_masks: bool = False) -> None:
        super().__init__(rows)
        self.rule, self.resize_masks = rule, resize_masks

    def read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image uint8 (3, H, W) and mask uint8 (H, W) of class ids, 255 where ignored.

        Raises:
            SampleError: one can't be decoded, they differ in size, or the mask holds a value that
                is none of the classes.
        """
        row = self.rows[index]
        image_name, mask_name = self.name_of(row, index), _mask_name(row, index)
        drawing = drawing_of(row["annotation"])
        upright = drawing is None or drawing["upright"]
        image = read_image(row["image"], image_name, upright)
        mask = self._mask(row, mask_name)
        if mask.shape != image.shape[1:]:
            mask = self._resized(mask, image.shape[1:], mask_name, image_name)
        return image, mask

    def _resized(
        self, mask: torch.Tensor, size: torch.Size, mask_name: str, image_name: str
    ) -> torch.Tensor:
        """The mask in its image's size, if that is asked for and their proportions agree."""
        (height, width), (rows, columns) = size, mask.shape
        # Half a pixel of rounding, of the smaller of the two.
        similar = abs(rows * width - columns * height) <= max(height, width, rows, columns)
        if self.resize_masks and similar:
            return F.resize(mask[None], list(size), InterpolationMode.NEAREST_EXACT)[0]
        what = f"{mask_name} has {columns}x{rows} pixels, but its image, {image_name}, has "
        what += f"{width}x{height}"
        if (rows, columns) == (width, height):
            remedy = "turn the mask as the EXIF orientation of the image says"
        elif self.resize_masks:
            remedy = "resizing would distort the mask, so mend or remove them"
        else:
            remedy = "give both the same size, or add --resize_masks"
        raise SampleError(f"{what}: {remedy}.")

    def read_mask(self, index: int) -> torch.Tensor:
        """The mask alone, uint8 (H, W) of class ids, 255 where ignored.

        Raises:
            SampleError: it can't be decoded, or holds a value that is none of the classes.
        """
        row = self.rows[index]
        return self._mask(row, _mask_name(row, index))

    def _mask(self, row: dict[str, Any], mask_name: str) -> torch.Tensor:
        if drawing := drawing_of(row["annotation"]):
            return torch.from_numpy(draw_mask(drawing))
        stored = read_mask(row["annotation"], mask_name)
        try:
            return self.rule(*stored)
        except UnknownValueError as error:
            problem = f"{mask_name} holds {error}, which is none of the data set's "
            problem += f"{self.rule.num_classes} classes"
            if looks_smoothed(stored.values):
                raise SampleError(
                    f"{problem}, and looks smoothed, by resizing or by JPEG: export it again as "
                    "PNG, and resize masks without interpolation."
                ) from None
            raise SampleError(f"{problem}: correct the mask or the list of classes.") from None


def _mask_name(row: dict, index: int) -> str:
    return cell_name(row["annotation"], f"Mask of sample {index}")


class TrainDataset(ReaderDataset):
    """Augmented samples, each with a random state of its own.

    Args:
        reader: of the training split.
        transform: of (tv_tensors.Image, tv_tensors.Mask), random from torch's generator alone.
        seed: the run's seed.
    """

    def __init__(self, reader: Reader, transform: Callable[..., Any], seed: int) -> None:
        super().__init__(reader)
        self.transform, self.seed = transform, seed

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        """The sample of an entry of the stream.

        Returns:
            {"image": uint8 (3, H, W), "mask": uint8 (H, W) of class ids or 255}.

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        image, mask = self.reader.read(key.index)
        with sample_randomness(self.seed, key):
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return {
            "image": image.as_subclass(torch.Tensor),
            "mask": mask.as_subclass(torch.Tensor),
        }


class EvalDataset(ReaderDataset):
    """Samples for evaluation: the image resized, the mask at its own resolution.

    Args:
        reader: of the validation split.
        transform: of an image uint8 (3, H, W).
    """

    def __init__(self, reader: Reader, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(reader)
        self.transform = transform

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """The sample of an index.

        Returns:
            {"image": uint8 (3, h, w), "mask": uint8 (H, W) of class ids or 255}.

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        image, mask = self.reader.read(index)
        return {"image": self.transform(image), "mask": mask}


def collate_train(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack samples of one size.

    Returns:
        {"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W)}.
    """
    return collate(samples, "image")


def collate_eval(samples: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Group samples by size and stack each group, in the order in which the sizes appear.

    So every image is evaluated at its own size, unpadded and unscaled.

    Returns:
        For each group {"image": uint8 (B, 3, h, w), "mask": uint8 (B, H, W)}.
    """
    groups: dict[tuple, list[dict[str, torch.Tensor]]] = {}
    for sample in samples:
        groups.setdefault((sample["image"].shape, sample["mask"].shape), []).append(sample)
    return [collate(group, "image") for group in groups.values()]
