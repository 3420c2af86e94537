"""Reading a whole data set before training: what is bad in it, and what it consists of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from data.classification.dataset import ClassificationDataset
from data.decode import SampleError


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


def survey(dataset: ClassificationDataset, num_workers: int = 0) -> Survey:
    """Decode every sample to the last pixel, as it is stored, and count classes and sizes."""
    loader = DataLoader(_Reader(dataset), batch_size=16, num_workers=num_workers, collate_fn=list)
    problems: list[str] = []
    images = [0] * len(dataset.data.classes)
    sizes: Counter[tuple[int, int]] = Counter()
    for found in (sample for batch in loader for sample in batch):
        if isinstance(found, str):
            problems.append(found)
        else:
            label, size = found
            images[label] += 1
            sizes[size] += 1
    return Survey(problems, images, sizes, len(dataset))


class _Reader(Dataset):
    """For each sample its label and size, or the sentence that says what is wrong with it."""

    def __init__(self, dataset: ClassificationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, tuple[int, int]] | str:
        try:
            image, label = self.dataset.read(index)
        except SampleError as error:
            return str(error)
        return label, (image.shape[1], image.shape[2])
