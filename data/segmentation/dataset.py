"""Segmentation data: one schema from every source, a Dataset over it, and its batches."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors

from data.decode import SampleError, cell_name, read_image, read_mask
from data.masks import Color, UnknownValueError
from data.segmentation.sources import SOURCES, SegmentationData, load_hub
from data.sources import source_called, spread
from data.stream import sample_seed

__all__ = [
    "SegmentationData",
    "SegmentationDataset",
    "collate_eval",
    "collate_train",
    "load_segmentation",
]


def load_segmentation(
    dataset: str = "synthetic",
    data_dir: str | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    seed: int = 0,
    image_column: str = "image",
    mask_column: str = "annotation",
    class_names: Sequence[str] | str | None = None,
    palette: Sequence[Color] | None = None,
    image_size: tuple[int, int] | None = None,
) -> SegmentationData:
    """Find a data set's images and masks; nothing is decoded yet.

    Args:
        dataset: synthetic, folder, camvid, voc, cityscapes, ade20k or hub:<id or local path>.
        data_dir: the data set's folder, for all but synthetic and hub.
        limit_train: keep only so many training samples, evenly spaced over the data set.
        limit_val: the same for validation.
        seed: synthetic: seed of the pictures.
        image_column: hub: name of the column of images.
        mask_column: hub: name of the column of masks.
        class_names: folder and hub: names in the order of the ids, or the path of a class file.
        palette: folder and hub: colour of each name, for colour-coded masks.
        image_size: synthetic: (height, width) of the pictures.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    if dataset.startswith("hub:"):
        data = load_hub(dataset[4:], image_column, mask_column, class_names, palette)
    else:
        data = source_called(dataset, SOURCES)(
            data_dir=data_dir,
            limit_train=limit_train,
            limit_val=limit_val,
            seed=seed,
            class_names=class_names,
            palette=palette,
            image_size=image_size,
        )
    return data.with_rows(spread(data.train, limit_train), spread(data.val, limit_val))


class SegmentationDataset(Dataset):
    """Samples of a split, decoded and transformed; a sample's random state is its own.

    Args:
        rows: ``data.train`` or ``data.val``.
        data: where the rows come from.
        transform: of (tv_tensors.Image, tv_tensors.Mask), random from torch's generator alone.
        seed: the run's seed.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        data: SegmentationData,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.data = data
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """The sample of a key ``(epoch, index)``; a bare index is epoch 0.

        Returns:
            {"image": uint8 (3, H, W), "mask": uint8 (H, W) of class ids or 255, "index": int}.

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask = self.read(index)
        if self.transform is not None:
            # Forked, so that without workers the main process's own random state stays untouched.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
                image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return {
            "image": image.as_subclass(torch.Tensor),
            "mask": mask.as_subclass(torch.Tensor),
            "index": index,
        }

    def read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, H, W) and mask (H, W) as they are stored, uint8, the mask in class ids.

        Raises:
            SampleError: one can't be decoded, they differ in size, or the mask holds no class id.
        """
        row = self.rows[index]
        image_name, mask_name = _names(row, index)
        image, mask = read_image(row["image"], image_name), self._read_mask(row, mask_name)
        if mask.shape != image.shape[1:]:
            raise SampleError(
                f"Mask {mask_name} is {mask.shape[1]}x{mask.shape[0]} pixels but its image "
                f"{image_name} is {image.shape[2]}x{image.shape[1]}: make them the same size, or "
                "remove both."
            )
        return image, mask

    def read_mask(self, index: int) -> torch.Tensor:
        """The mask alone, (H, W), uint8 in class ids.

        Raises:
            SampleError: it can't be decoded, or holds no class id.
        """
        row = self.rows[index]
        return self._read_mask(row, _names(row, index)[1])

    def _read_mask(self, row: dict[str, Any], mask_name: str) -> torch.Tensor:
        stored = read_mask(row["annotation"], mask_name)
        try:
            return self.data.rule(stored)
        except UnknownValueError as error:
            raise SampleError(
                f"Mask {mask_name} holds {error}, which is none of the data set's "
                f"{len(self.data.classes)} classes: correct the mask or the list of classes."
            ) from None

    def name(self, index: int) -> str:
        """The image's file, or where there is none the sample's number."""
        return _names(self.rows[index], index)[0]


def _names(row: dict, index: int) -> tuple[str, str]:
    image = cell_name(row["image"], f"image of sample {index}")
    return image, cell_name(row["annotation"], f"of sample {index}")


def collate_train(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples of one size.

    Returns:
        {"image": uint8 (B, 3, H, W), "mask": uint8 (B, H, W), "index": int64 (B,)}.
    """
    return default_collate(samples)  # in a worker it stacks right into shared memory


def collate_eval(samples: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """Group samples by size and stack each group, in the order in which the sizes appear.

    Every picture is then evaluated at its own size, unpadded and unscaled.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((sample["image"].shape, sample["mask"].shape), []).append(sample)
    return [default_collate(group) for group in groups.values()]
