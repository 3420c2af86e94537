"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from data.check import check_splits
from data.decode import SampleError
from engine.loaders import count_workers
from tasks.classification.dataset import Reader
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import ClassificationData


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Args:
        problems: a sentence per bad sample, naming the file.
        images: good samples of each class.
        sizes: good samples by (height, width).
        samples: all samples read.
    """

    problems: list[str]
    images: list[int]
    sizes: Counter[tuple[int, int]]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """A table: number of images of each class, and their sizes."""
        width = max(map(len, classes))
        rows = [
            f"{name:<{width}}  {count} images" + ("" if count else ", so it can't be learnt")
            for name, count in zip(classes, self.images, strict=True)
        ]
        if not self.sizes:
            return rows
        heights, widths = zip(*self.sizes, strict=True)
        (height, length), count = self.sizes.most_common(1)[0]
        return [
            *rows,
            f"sizes: {min(heights)} to {max(heights)} pixels high, {min(widths)} to {max(widths)} "
            f"wide; {count} of them {height}x{length}",
        ]


def check_data(options: ClassificationOptions, data: ClassificationData) -> int:
    """Read every sample of both splits and print what was found; returns the exit status."""
    splits = {"train": data.train, "val": data.val}
    readers = {name: Reader(rows, len(data.classes)) for name, rows in splits.items()}
    workers = count_workers(options.num_workers, len(data.train))
    return check_splits(readers, survey, data.classes, workers)


def survey(reader: Reader, num_workers: int = 0) -> Survey:
    """Decode every sample to the last pixel, as it is stored, and count classes and sizes."""
    sizes_of = _Sizes(reader)
    loader = DataLoader(sizes_of, batch_size=16, num_workers=num_workers, collate_fn=list)
    problems: list[str] = []
    images = [0] * reader.num_classes
    sizes: Counter[tuple[int, int]] = Counter()
    for found in (sample for batch in loader for sample in batch):
        if isinstance(found, str):
            problems.append(found)
        else:
            label, size = found
            images[label] += 1
            sizes[size] += 1
    return Survey(problems, images, sizes, len(reader))


class _Sizes(Dataset):
    """For each sample its label and size, or the sentence that says what is wrong with it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[int, tuple[int, int]] | str:
        try:
            image, label = self.reader.read(index)
        except SampleError as error:
            return str(error)
        return label, (image.shape[1], image.shape[2])
