"""Classification samples: read from a table of rows, augmented and mixed for training."""

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torchvision import tv_tensors

from data.decode import SampleError, read_image
from data.samples import ReaderDataset, RowReader
from data.samples import collate as collate_samples
from data.stream import SampleKey, sample_randomness
from tasks.classification.mixing import Mixing

Transform = Callable[[tv_tensors.Image], torch.Tensor]


class Reader(RowReader):
    """The images and labels of a split, as they are stored.

    Args:
        rows: with the columns image and label.
        num_classes: K; labels go from 0 to K - 1.
    """

    def __init__(self, rows: datasets.Dataset, num_classes: int) -> None:
        super().__init__(rows)
        self.num_classes = num_classes

    def read(self, index: int) -> tuple[torch.Tensor, int]:
        """The image, uint8 (3, H, W), and its label; grey images have three equal channels.

        Raises:
            SampleError: the image can't be decoded, or its label is not one of the classes.
        """
        row = self.rows[index]
        name, label = self.name_of(row, index), row["label"]
        if label is None or not 0 <= label < self.num_classes:
            raise SampleError(
                f"{name} has the label {label}, which is none of the data set's "
                f"{self.num_classes} classes: correct it, or remove the image."
            )
        return read_image(row["image"], name), label


class TrainDataset(ReaderDataset):
    """Augmented samples; a sample's random state is its own.

    Args:
        reader: of the training split.
        transform: random from torch's generator alone; gives all images one size.
        seed: the run's seed.
        mixing: mixup and CutMix, or None; a mixed sample costs two images.
    """

    def __init__(
        self, reader: Reader, transform: Transform, seed: int, mixing: Mixing | None = None
    ) -> None:
        super().__init__(reader)
        self.transform, self.seed, self.mixing = transform, seed, mixing

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """A sample of the stream.

        Returns:
            {"image": uint8 (3, H, W), "label": int}; with mixing also the "label2" of the image
            mixed in and "mix", the share of "label".

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        with sample_randomness(self.seed, key):
            image, label = self._augmented(key.index)
            if self.mixing is None:
                return {"image": image, "label": label}
            mix = self.mixing.draw()
            # From the whole split, not from the batch: a sample must not depend on how many
            # processes share a batch.
            other, label2 = self._augmented(int(torch.randint(len(self), ())))
            image, share = mix.method(image, other, mix.share)
            return {"image": image, "label": label, "label2": label2, "mix": share}

    def _augmented(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.reader.read(index)
        return self.transform(tv_tensors.Image(image)).as_subclass(torch.Tensor), label


class EvalDataset(ReaderDataset):
    """Samples as they are scored.

    Args:
        reader: of the validation split.
        transform: without anything random; gives all images one size.
    """

    def __init__(self, reader: Reader, transform: Transform) -> None:
        super().__init__(reader)
        self.transform = transform

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample of a number: {"image": uint8 (3, H, W), "label": int, "index": int}.

        Raises:
            SampleError: the sample can't be used; the message names the file.
        """
        image, label = self.reader.read(index)
        image = self.transform(tv_tensors.Image(image)).as_subclass(torch.Tensor)
        return {"image": image, "label": label, "index": index}


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples of one size.

    Returns:
        {"image": uint8 (B, 3, H, W), "label": int64 (B,)}; of evaluation also "index": int64 (B,);
        with mixing also "label2": int64 (B,) and "mix": float64 (B,).
    """
    return collate_samples(samples, "image")
