"""Semantic segmentation as a task of the engine."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from data.masks import IGNORE
from data.pixels import IMAGENET
from engine.loaders import count_workers
from engine.plan import Plan
from engine.task import Batch, Evaluation, Losses, Tally, Task, compute_dtype, evenly_spaced_samples
from errors import UserError
from figures.sheet import contact_sheet
from models.segmentation import build_segmentation_model
from tasks.segmentation.check import survey
from tasks.segmentation.dataset import (
    EvalDataset,
    Reader,
    TrainDataset,
    collate_eval,
    collate_train,
)
from tasks.segmentation.figures import segmentation_panel
from tasks.segmentation.loss import (
    cross_entropy_sum,
    dice_sum,
    median_frequency_weights,
    weight_sum,
)
from tasks.segmentation.metrics import segmentation_metrics
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import SegmentationData
from tasks.segmentation.transforms import eval_transform, train_transform

# The denominator of the loss if every pixel is ignored: the loss is then 0.
TINY = 1e-12


class Segmentation(Task):
    """Semantic segmentation: a class for every pixel of an image.

    Args:
        options: the script's options.
        data: the data set.
        plan: the run's arithmetic.
        device: the device of model and batches.

    Raises:
        UserError: the number of class weights is not that of the classes.
    """

    name = "segmentation"
    best_metric = "miou"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(
        self,
        options: SegmentationOptions,
        data: SegmentationData,
        plan: Plan,
        device: torch.device,
    ) -> None:
        self.options, self.data, self.device = options, data, device
        reader = Reader(data.train, data.rule, options.resize_masks)
        augment = train_transform(
            crop_size=tuple(options.crop_size),
            scale=tuple(options.scale_range),
            hflip=options.hflip,
            color_jitter=tuple(options.color_jitter),
        )
        self.train_data = TrainDataset(reader, augment, options.seed)
        resize = eval_transform(options.eval_size)
        val_reader = Reader(data.val, data.rule, options.resize_masks)
        self.val_data = EvalDataset(val_reader, resize)
        self.identity = {"classes": data.classes}
        self.dtype = compute_dtype(options.double)
        self.mean, self.std = IMAGENET.of_bytes(self.dtype, device, dims=2)
        self.class_weights = self._class_weights(reader)

    def _class_weights(self, reader: Reader) -> Tensor | None:
        """A weight per class (K,), or None for equal ones."""
        wanted = self.options.class_weights
        if wanted == "none":
            return None
        if wanted == "median_frequency":
            # Every process reads every mask once, so their weights agree.
            workers = count_workers(self.options.num_workers, len(reader))
            seen = survey(reader, workers, images=False)
            wanted = median_frequency_weights(seen.pixels[:-1], seen.images)
        if len(wanted) != len(self.data.classes):
            raise UserError(
                f"--class_weights has {len(wanted)} weights for {len(self.data.classes)} classes "
                f"({', '.join(self.data.classes)}); give one for each."
            )
        return torch.as_tensor(wanted, dtype=self.dtype, device=self.device)

    def build_model(self) -> nn.Module:
        """The network, which maps images (B, 3, H, W) to {"out": logits (B, K, H, W)}.

        With an auxiliary head, it also returns {"aux": logits (B, K, H, W)} in training.
        """
        return build_segmentation_model(
            self.options.model,
            len(self.data.classes),
            backbone=self.options.backbone,
            weights=self.options.weights,
            aux_loss=self.options.aux_loss > 0,
        )

    def to_device(self, batch: dict[str, Tensor]) -> Batch:
        """Images to float (B, 3, H, W) with scaled pixels, masks to int64 (B, H, W)."""
        image = batch["image"].to(self.device, non_blocking=True)
        mask = batch["mask"].to(self.device, non_blocking=True)
        image = (image.to(self.dtype) - self.mean) / self.std
        if self.options.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return {"image": image, "mask": mask.long()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        """The number of pixels that are not ignored, each times the weight of its class."""
        return {"pixels": weight_sum(batch["mask"], self.class_weights).double()}

    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """Cross entropy per pixel, Dice per image, and the auxiliary head's cross entropy."""
        outputs, mask = model(batch["image"]), batch["mask"]
        pixels = denominators["pixels"].clamp(min=TINY)
        sums = self._loss_sums(outputs["out"], mask)
        parts = {"ce": sums["ce"] / pixels}
        if "dice" in sums:
            parts["dice"] = sums["dice"] / denominators["images"]
        if "aux" in outputs:
            aux = cross_entropy_sum(outputs["aux"], mask, self.class_weights)
            parts["aux"] = self.options.aux_loss * aux / pixels
        return Losses(parts)

    def _loss_sums(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Cross entropy summed over pixels, and Dice over images where it is asked for."""
        sums = {"ce": cross_entropy_sum(logits, mask, self.class_weights)}
        if self.options.loss == "ce_dice":
            sums["dice"] = dice_sum(logits, mask)
        return sums

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, K, H, W) at the resolution of the mask."""
        logits = model(batch["image"])["out"].to(self.dtype)
        size = batch["mask"].shape[-2:]
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def evaluate(self, model: nn.Module, batches: Iterator[list[dict[str, Tensor]]]) -> Tally:
        """The confusion matrix (K, K), truth against prediction, the losses and denominators."""
        classes = len(self.data.classes)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = {"confusion": zero.expand(classes, classes).clone()}
        sums |= {name: zero.clone() for name in ("ce", "dice", "pixels", "images")}
        for batch in (self.to_device(group) for groups in batches for group in groups):
            logits = self.predict(model, batch)
            for name, value in self._loss_sums(logits, batch["mask"]).items():
                sums[name] += value
            sums["pixels"] += self.denominators(batch)["pixels"]
            sums["images"] += len(batch["mask"])
            sums["confusion"] += multiclass_confusion_matrix(
                logits.argmax(1), batch["mask"], classes, ignore_index=IGNORE, validate_args=False
            )
        return Tally(sums)

    def score(self, sums: dict[str, Tensor], records: list) -> Evaluation:
        """Mean IoU, the IoU of every class that occurs, pixel accuracy and loss."""
        metrics = segmentation_metrics(sums["confusion"], self.data.classes)
        cross_entropy = sums["ce"] / sums["pixels"].clamp(min=TINY)
        dice = sums["dice"] / sums["images"].clamp(min=1)
        return Evaluation(metrics | {"loss": (cross_entropy + dice).item()})

    def figures(self, model: nn.Module, details: None) -> dict[str, Tensor]:
        """The same validation images every time, beside truth and prediction."""
        panels = []
        for sample in evenly_spaced_samples(self.val_data, self.options.pictures):
            prediction = self.predict(model, self.to_device(collate_train([sample]))).argmax(1)[0]
            panels.append(
                segmentation_panel(sample["image"], sample["mask"], prediction, self.data.colors)
            )
        if not panels:
            return {}
        return {"predictions": contact_sheet(panels, self.data.classes, self.data.colors)}
