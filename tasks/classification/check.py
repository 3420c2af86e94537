"""``--check_data``: reading a whole data set before training, to find what is bad in it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from data.check import Look, Suspicion, read_all, run_check
from data.faults import Fault, Faults
from engine.loaders import count_workers
from tasks.classification.dataset import Reader
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import ClassificationData, load_data


@dataclass(frozen=True)
class Survey:
    """What reading every sample of a data set has shown.

    Attributes:
        faults: of the samples that can't be used.
        looks: what each image shows, None for one that can't be used.
        images: number of good samples of each class.
        sizes: number of good samples of each (height, width).
        samples: number of all samples read.
    """

    faults: list[Fault]
    looks: list[Look | None]
    images: list[int]
    sizes: Counter[tuple[int, int]]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """The number of images of each class, and the sizes."""
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

    def suspicions(self, classes: Sequence[str], reader: Reader) -> list[Suspicion]:
        """Classes without an image."""
        absent = [name for name, count in zip(classes, self.images, strict=True) if not count]
        hint = "can't be learnt or scored"
        return [Suspicion("classes without images", hint, absent)] if absent else []


def check_data(
    options: ClassificationOptions,
    load: Callable[[ClassificationOptions, Faults], ClassificationData] = load_data,
) -> int:
    """Read every sample of both splits and print what was found; returns the exit status."""
    return run_check(
        options,
        load,
        lambda data: {
            "train": Reader(data.train, len(data.classes)),
            "val": Reader(data.val, len(data.classes)),
        },
        lambda data, reader, workers: survey(reader, workers),
        partial(count_workers, options.num_workers),
    )


def survey(reader: Reader, num_workers: int = 0) -> Survey:
    """Decode every sample completely, as it is stored, and count classes and sizes."""
    faults: list[Fault] = []
    looks: list[Look | None] = []
    images = [0] * reader.num_classes
    sizes: Counter[tuple[int, int]] = Counter()
    for measured, fault in read_all(partial(_measure, reader), reader, num_workers):
        if fault:
            faults.append(fault)
            looks.append(None)
            continue
        label, size, look = measured
        images[label] += 1
        sizes[size] += 1
        looks.append(look)
    return Survey(faults, looks, images, sizes, len(reader))


def _measure(reader: Reader, index: int) -> tuple[int, tuple[int, int], Look]:
    """A sample's label and (height, width), and what it shows."""
    image, label = reader.read(index)
    return label, (image.shape[1], image.shape[2]), Look.of([image])
