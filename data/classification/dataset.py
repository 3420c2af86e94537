"""Classification data: one schema from every source, a Dataset over it, and its batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors

from data.classification.arrays import load_cifar, load_fake, load_fashion_mnist
from data.classification.mixing import Mixing
from data.classification.sources import (
    ClassificationData,
    load_folder,
    load_hub,
    load_synthetic,
)
from data.decode import SampleError, cell_name, read_image
from data.sources import source_called, spread
from data.stream import sample_seed

__all__ = [
    "ClassificationData",
    "ClassificationDataset",
    "collate_eval",
    "collate_train",
    "load_classification",
]

SOURCES: dict[str, Callable[..., ClassificationData]] = {
    "synthetic": load_synthetic,
    "folder": load_folder,
    "fashion_mnist": load_fashion_mnist,
    "cifar10": partial(load_cifar, dataset="cifar10"),
    "cifar100": partial(load_cifar, dataset="cifar100"),
    "fake": load_fake,
}


def load_classification(
    dataset: str = "synthetic",
    data_dir: str | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> ClassificationData:
    """Find a data set's pictures and labels; nothing is decoded yet.

    Args:
        dataset: synthetic, folder, fashion_mnist, cifar10, cifar100, fake or
            hub:<id or local path>.
        data_dir: the data set's folder; fashion_mnist and cifar are downloaded to it if it doesn't
            hold them. Not for synthetic, fake and hub.
        limit_train: keep only so many training samples, evenly spaced over the data set.
        limit_val: the same for validation.
        seed: synthetic and fake: seed of the pictures.
        image_size: synthetic and fake: (height, width) of the pictures.
        image_column: hub: name of the column of images.
        label_column: hub: name of the column of labels.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    if dataset.startswith("hub:"):
        data = load_hub(dataset[4:], image_column, label_column)
    else:
        data = source_called(dataset, SOURCES)(
            data_dir=data_dir,
            limit_train=limit_train,
            limit_val=limit_val,
            seed=seed,
            image_size=image_size,
        )
    train, val = spread(data.train, limit_train), spread(data.val, limit_val)
    return ClassificationData(train, val, data.classes, data.notes)


class ClassificationDataset(Dataset):
    """Samples of a split, decoded and transformed; a sample's random state is its own.

    Args:
        rows: ``data.train`` or ``data.val``.
        data: where the rows come from.
        transform: of a tv_tensors.Image, random from torch's generator alone.
        seed: the run's seed.
        mixing: mixup and CutMix, for training, with a transform that gives all pictures one size;
            a mixed sample costs two pictures.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        data: ClassificationData,
        transform: Callable[..., Any] | None = None,
        seed: int = 0,
        mixing: Mixing | None = None,
    ) -> None:
        self.rows = rows
        self.data = data
        self.transform = transform
        self.seed = seed
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """The sample of a key ``(epoch, index)``; a bare index is epoch 0.

        Returns:
            {"image": uint8 (3, H, W), "label": int, "index": int}; with mixing also the "label2"
            of the picture mixed in and "mix", the share of "label".

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        # Forked, so that without workers the main process's own random state stays untouched.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also prepare the seeds of all accelerators: a millisecond.
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            image, label = self._transformed(index)
            sample = {"image": image, "label": label, "index": index}
            if self.mixing is not None:
                # The partner is drawn from the whole split, not from the batch: what a sample is
                # doesn't depend on how many processes share a batch.
                sample |= self.mixing(image, label, self._transformed, len(self))
        return sample

    def _transformed(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.read(index)
        if self.transform is not None:
            image = self.transform(tv_tensors.Image(image)).as_subclass(torch.Tensor)
        return image, label

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """Picture uint8 (3, H, W) as it is stored, a grey one with three equal channels; label.

        Raises:
            SampleError: the picture can't be decoded, or the label is none of the classes.
        """
        row = self.rows[index]
        name, label = _name(row, index), row["label"]
        if label is None or not 0 <= label < len(self.data.classes):
            raise SampleError(
                f"{name} has the label {label}, which is none of the data set's "
                f"{len(self.data.classes)} classes: correct it or remove the picture."
            )
        return read_image(row["image"], name), label

    def name(self, index: int) -> str:
        """The picture's file, or where there is none the sample's number."""
        return _name(self.rows[index], index)


def _name(row: dict, index: int) -> str:
    return cell_name(row["image"], f"image of sample {index}")


def collate_train(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples of one size.

    Returns:
        {"image": uint8 (B, 3, H, W), "label": int64 (B,), "index": int64 (B,)}; with mixing also
        "label2": int64 (B,) and "mix": float64 (B,).
    """
    return default_collate(samples)  # in a worker it stacks right into shared memory


# The transform for evaluation gives all pictures one size, so there is nothing to group.
collate_eval = collate_train
