"""Video classification as the engine sees it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from data.balance import square_root_weights
from data.masks import default_colors
from engine.plan import Plan
from engine.task import Batch, Evaluation, Losses, Tally, Task, evenly_spaced_samples
from figures.confusion import confusion_figure
from tasks.classification.loss import cross_entropy_sum
from tasks.classification.metrics import ClassCounts, class_metrics
from tasks.video.dataset import EvalDataset, Reader, TrainDataset, collate
from tasks.video.figures import film_sheet, film_strip
from tasks.video.inference import VideoInference
from tasks.video.options import VideoOptions
from tasks.video.sources import VideoData
from tasks.video.transforms import train_transform


class VideoClassification(Task):
    """A class for every video.

    Args:
        options: the script's options.
        data: the data set.
        plan: the run's arithmetic.
        device: on which batches are computed.

    Raises:
        UserError: the decoder can't be loaded.
    """

    name = "video"
    best_metric = "top1"
    collate_train = staticmethod(collate)
    collate_eval = staticmethod(collate)

    def __init__(
        self, options: VideoOptions, data: VideoData, plan: Plan, device: torch.device
    ) -> None:
        self.options, self.data, self.device = options, data, device
        colors = default_colors(len(data.classes) + 1)[1:]
        self.inference = VideoInference(options, data.classes, colors, device)
        self.batch_size = plan.batch_size
        size = tuple(options.crop_size)
        area = options.crop_area and tuple(options.crop_area)
        short_side = None if area else tuple(options.short_side)
        augment = train_transform(size, area, options.hflip, tuple(options.color_jitter))
        train, val = (Reader(rows, data.open, options.decoder) for rows in (data.train, data.val))
        self.train_data = TrainDataset(
            train, self.inference.clip, short_side, augment, options.seed
        )
        if options.balance_classes:
            self.train_data.weights = square_root_weights(data.train["label"][:])
        self.val_data = EvalDataset(
            val, self.inference.clip, options.eval_short_side, self.inference.windows
        )
        self.identity = {"classes": data.classes}

    def build_model(self) -> nn.Module:
        """The network; every one maps clips (B, 3, T, H, W) to logits (B, K)."""
        return self.inference.build_model(self.options.weights)

    def to_device(self, batch: dict[str, Tensor]) -> Batch:
        """Video to float clips (B, 3, T, H, W) with scaled pixels, the rest as it is.

        The clips of an evaluation, (B, views, T, 3, H, W), follow each other in one batch.
        """
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        return moved | {"video": self.inference.scaled(moved["video"])}

    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """Cross entropy per clip; counts the clips whose videos are too short for them."""
        loss = cross_entropy_sum(model(batch["video"]), batch, self.options.label_smoothing)
        counts = {"looped": batch["looped"].sum()}
        return Losses({"ce": loss / denominators["images"]}, counts)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Probabilities (B, views, K); as many clips at a time as in a training batch."""
        videos = len(batch["label"])
        return self.inference.probabilities(model, batch["video"], videos, self.batch_size)

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> Tally:
        """Counts for the metrics of videos, whose views are averaged, and of single clips."""
        classes = len(self.data.classes)
        videos, clips = ClassCounts(classes, self.device), ClassCounts(classes, self.device)
        for batch in map(self.to_device, batches):
            probabilities, labels = self.predict(model, batch), batch["label"]
            videos.add(probabilities.mean(1), labels)
            clips.add(probabilities.flatten(0, 1), labels.repeat_interleave(probabilities.shape[1]))
        return Tally(videos.sums | {f"clip_{name}": value for name, value in clips.sums.items()})

    def score(self, sums: dict[str, Tensor], records: list) -> Evaluation:
        """The metrics of videos, and the same of clips where a video has several."""
        metrics = class_metrics(sums, self.data.classes)
        if self.options.eval_clips * self.options.eval_crops > 1:
            clips = {name: sums[f"clip_{name}"] for name in ("confusion", "top5", "loss")}
            of_clips = class_metrics(clips, self.data.classes)
            metrics |= {f"clip_{name}": of_clips[name] for name in of_clips if "top" in name}
        return Evaluation(metrics, details=sums["confusion"])

    def figures(self, model: nn.Module, details: Tensor) -> dict[str, Tensor]:
        """The confusion matrix, and the same validation clips every time with predictions."""
        figures = {"confusion": confusion_figure(details, self.data.classes)}
        strips = []
        for sample in evenly_spaced_samples(self.val_data, self.options.pictures):
            batch = self.to_device(collate([sample]))
            best, guess = self.predict(model, batch)[0].mean(0).max(0)
            names = self.data.classes[sample["label"]], self.data.classes[int(guess)]
            strips.append(film_strip(sample["video"][0], *names, float(best)))
        return figures | ({"predictions": film_sheet(strips)} if strips else {})
