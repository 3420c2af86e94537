"""Detection samples: read from a table of rows, augmented for training, letterboxed to score."""

from typing import Any

import datasets
import torch
from torchvision import tv_tensors

from data.decode import SampleError, read_image
from data.samples import ReaderDataset, RowReader
from data.stream import SampleKey, sample_randomness
from tasks.detection import instance_masks
from tasks.detection.geometry import Sample, boxes_like
from tasks.detection.transforms import EvalTransform, TrainTransform

Truth = dict[str, Any]


class Reader(RowReader):
    """The images and objects of a split, as they are stored.

    Args:
        rows: as ``tasks.detection.rows.features`` describes them.
        with_masks: whether objects come with their masks; the rows must have been made with them.
    """

    def __init__(self, rows: datasets.Dataset, with_masks: bool = False) -> None:
        super().__init__(rows)
        self.with_masks = with_masks

    def read(self, index: int) -> tuple[torch.Tensor, Truth]:
        """An image and its objects.

        Returns:
            Image uint8 (3, H, W), and {"boxes": float64 (N, 4) x y width height in pixels,
            "labels": int64 (N,), "iscrowd": int64 (N,), "area": float64 (N,), "image_id": int,
            and with masks "rles": COCO's compressed run lengths of each}.

        Raises:
            SampleError: the image can't be decoded, or isn't as large as it was when its header was
                read.
        """
        row = self.rows[index]
        name = self.name_of(row, index)
        image = read_image(row["image"], name, row["upright"])
        size = (row["height"], row["width"])
        if tuple(image.shape[1:]) != size:
            raise SampleError(
                f"{name} is {image.shape[2]}x{image.shape[1]} pixels, but was {size[1]}x{size[0]} "
                "when its boxes were read: restore the image, or start again."
            )
        objects = row["objects"]
        truth = {
            "boxes": torch.tensor(objects["bbox"], dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor(objects["category"], dtype=torch.int64),
            "iscrowd": torch.tensor(objects["iscrowd"], dtype=torch.int64),
            "area": torch.tensor(objects["area"], dtype=torch.float64),
            "image_id": row["image_id"],
        }
        if self.with_masks:
            truth["rles"] = [instance_masks.to_rle(text, size) for text in objects["outline"]]
        return image, truth

    def sample(self, index: int) -> Sample:
        """An image and its objects without crowds, as the transforms take them.

        Raises:
            SampleError: the image can't be used; the message names the file.
        """
        return targets(*self.read(index))

    def random_sample(self) -> Sample:
        """A sample drawn from torch's generator, to be mixed into another one."""
        return self.sample(int(torch.randint(len(self), ())))


def targets(image: torch.Tensor, truth: Truth) -> Sample:
    """What ``Reader.read`` returns as a sample for the transforms, without crowds."""
    size = tuple(image.shape[1:])
    keep = truth["iscrowd"] == 0
    x, y, width, height = truth["boxes"][keep].unbind(1)
    corners = torch.stack([x, y, x + width, y + height], dim=1).float()
    sample = {
        "image": tv_tensors.Image(image),
        "boxes": boxes_like(corners, size),
        "labels": truth["labels"][keep],
    }
    if "rles" in truth:
        rles = [rle for rle, kept in zip(truth["rles"], keep.tolist(), strict=True) if kept]
        sample["masks"] = tv_tensors.Mask(instance_masks.decode(rles, size))
    return sample


def no_objects(image: torch.Tensor) -> Sample:
    """A picture of which nothing is known, as a sample for the transforms."""
    return {
        "image": tv_tensors.Image(image),
        "boxes": boxes_like(torch.zeros(0, 4), tuple(image.shape[1:])),
        "labels": torch.zeros(0, dtype=torch.int64),
    }


class TrainDataset(ReaderDataset):
    """Augmented samples; a sample's random state is its own.

    Args:
        reader: of the training split.
        transform: random from torch's generator alone.
        seed: the run's seed.
        with_masks: whether samples hold masks.
    """

    def __init__(
        self, reader: Reader, transform: TrainTransform, seed: int, with_masks: bool = False
    ) -> None:
        super().__init__(reader)
        self.transform, self.seed, self.with_masks = transform, seed, with_masks

    def __getitem__(self, key: SampleKey) -> dict[str, torch.Tensor]:
        """A sample of the stream.

        Returns:
            {"image": uint8 (3, H, W), "boxes": float32 (N, 4) x0 y0 x1 y1 in its pixels,
            "labels": int64 (N,), with masks "masks": uint8 (N, H, W)}.

        Raises:
            SampleError: the sample, or one that is mixed in, can't be used; the message names the
                file.
        """
        with sample_randomness(self.seed, key):
            sample = self.transform(self.reader, key)
        return _plain(sample, self.with_masks)


class EvalDataset(ReaderDataset):
    """Samples as they are scored: letterboxed, with the truth in the original image.

    Args:
        reader: of the validation split.
        transform: the letterbox.
        with_masks: whether samples hold masks.
        with_picture: whether samples hold the original image too, as "picture".
    """

    def __init__(
        self,
        reader: Reader,
        transform: EvalTransform,
        with_masks: bool = False,
        with_picture: bool = False,
    ) -> None:
        super().__init__(reader)
        self.transform, self.with_masks, self.with_picture = transform, with_masks, with_picture

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a number.

        Returns:
            What a training sample has, with "truth" as ``Reader.read`` returns it, in pixels of the
            original image, "index", and what ``geometry.to_original`` needs: "size", "scale" and
            "offset".

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        image, truth = self.reader.read(index)
        sample = self.transform(targets(image, truth))
        kept = {"picture": image} if self.with_picture else {}
        return _plain(sample, self.with_masks) | kept | {"truth": truth, "index": index}


def _plain(sample: Sample, with_masks: bool) -> dict[str, torch.Tensor]:
    """A sample as plain tensors."""
    return {
        name: value.as_subclass(torch.Tensor)
        for name, value in sample.items()
        if with_masks or name != "masks"
    }
