"""Image classification as the engine sees it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.balance import square_root_weights
from data.masks import default_colors
from engine.plan import Plan
from engine.task import Batch, Evaluation, Losses, Tally, Task
from figures.confusion import confusion_figure
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset, collate
from tasks.classification.figures import misclassified_figure
from tasks.classification.inference import ClassificationInference
from tasks.classification.loss import cross_entropy_sum
from tasks.classification.metrics import ClassCounts, Mistake, class_metrics
from tasks.classification.mixing import Mixing
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import ClassificationData
from tasks.classification.transforms import train_transform


class Details(NamedTuple):
    """What the figures show of an evaluation.

    Attributes:
        confusion: (K, K) images, truth (rows) against prediction.
        mistakes: the surest ones, the surest first.
    """

    confusion: Tensor
    mistakes: list[Mistake]


class Classification(Task):
    """A class for every image.

    Args:
        options: the script's options.
        data: the data set.
        plan: the run's arithmetic.
        device: on which batches are computed.
    """

    name = "classification"
    best_metric = "top1"
    collate_train = staticmethod(collate)
    collate_eval = staticmethod(collate)

    def __init__(
        self,
        options: ClassificationOptions,
        data: ClassificationData,
        plan: Plan,
        device: torch.device,
    ) -> None:
        self.options, self.data, self.device = options, data, device
        colors = default_colors(len(data.classes) + 1)[1:]
        self.inference = ClassificationInference(options, data.classes, colors, device)
        size = tuple(options.image_size)
        augment = train_transform(
            size,
            scale=tuple(options.crop_area),
            hflip=options.hflip,
            auto_augment=options.auto_augment,
            color_jitter=tuple(options.color_jitter),
            erasing=options.erasing,
            random_crop=options.crop_padding,
        )
        mixes = options.mixup > 0 or options.cutmix > 0
        mixing = Mixing(options.mixup, options.cutmix) if mixes else None
        classes = len(data.classes)
        self.train_data = TrainDataset(Reader(data.train, classes), augment, options.seed, mixing)
        if options.balance_classes:
            self.train_data.weights = square_root_weights(data.train["label"][:])
        self.val_data = EvalDataset(Reader(data.val, classes), self.inference.transform)
        self.identity = {"classes": data.classes}

    def build_model(self) -> nn.Module:
        """The network; every one maps images to logits (B, K)."""
        return self.inference.build_model(self.options.weights)

    def to_device(self, batch: dict[str, Tensor]) -> Batch:
        """Image to float (B, 3, H, W) with scaled pixels, the rest as it is."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        return moved | {"image": self.inference.scaled(moved["image"])}

    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """Cross entropy per image."""
        loss = cross_entropy_sum(model(batch["image"]), batch, self.options.label_smoothing)
        return Losses({"ce": loss / denominators["images"]})

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> Tally:
        """Counts for the metrics; records of the surest mistakes."""
        counts = ClassCounts(len(self.data.classes), self.device)
        answers = []  # on the device, so that no batch waits for it
        for batch in map(self.to_device, batches):
            probabilities = self.inference.probabilities(model, batch["image"])
            counts.add(probabilities, batch["label"])
            if self.options.pictures:
                best, predictions = probabilities.max(1)
                answers.append(torch.stack([best, predictions, batch["label"], batch["index"]]))
        return Tally(counts.sums, self._surest(answers))

    def _surest(self, answers: list[Tensor]) -> list[Mistake]:
        """The surest mistakes among answers (4, B): probability, prediction, truth and index."""
        if not answers:
            return []
        rows = torch.cat(answers, 1).T.cpu()
        wrong = rows[rows[:, 1] != rows[:, 2]].tolist()
        mistakes = [Mistake(row[0], *map(int, row[1:])) for row in wrong]
        return sorted(mistakes, reverse=True)[: self.options.pictures]

    def score(self, sums: dict[str, Tensor], records: list[Mistake]) -> Evaluation:
        """Top-1, top-5 with more than five classes, mean recall of the classes, loss."""
        mistakes = sorted(records, reverse=True)[: self.options.pictures]
        metrics = class_metrics(sums, self.data.classes)
        return Evaluation(metrics, Details(sums["confusion"], mistakes))

    def figures(self, model: nn.Module, details: Details) -> dict[str, Tensor]:
        """The confusion matrix, and the images on which the model was wrong and most sure."""
        figures = {"confusion": confusion_figure(details.confusion, self.data.classes)}
        if self.options.pictures:
            images = [self.val_data[mistake.index]["image"] for mistake in details.mistakes]
            figures["misclassified"] = misclassified_figure(
                images, details.mistakes, self.data.classes
            )
        return figures
