"""Semantic segmentation as a task of the engine."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.loaders import count_workers
from engine.plan import Plan
from engine.task import Batch, Evaluation, Losses, Tally, Task, evenly_spaced_samples
from errors import UserError
from figures.sheet import contact_sheet
from tasks.segmentation.check import survey
from tasks.segmentation.dataset import (
    EvalDataset,
    Reader,
    TrainDataset,
    collate_eval,
    collate_train,
)
from tasks.segmentation.figures import segmentation_panel
from tasks.segmentation.inference import SegmentationInference
from tasks.segmentation.loss import (
    cross_entropy_sum,
    dice_counts,
    dice_of_counts,
    dice_sum,
    median_frequency_weights,
    weight_sum,
)
from tasks.segmentation.metrics import count_pixels, segmentation_metrics
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import SegmentationData
from tasks.segmentation.transforms import train_transform

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
        self.inference = SegmentationInference(options, data.classes, data.colors, device)
        self.inference.at_once = plan.batch_size
        reader = Reader(data.train, data.rule, options.resize_masks)
        augment = train_transform(
            crop_size=tuple(options.crop_size),
            scale=tuple(options.scale_range),
            hflip=options.hflip,
            color_jitter=tuple(options.color_jitter),
        )
        self.train_data = TrainDataset(reader, augment, options.seed)
        val_reader = Reader(data.val, data.rule, options.resize_masks)
        self.val_data = EvalDataset(val_reader, self.inference.resize)
        self.identity = {"classes": data.classes}
        self.dtype = self.inference.dtype
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
        return self.inference.build_model(self.options.weights)

    def to_device(self, batch: dict[str, Tensor]) -> Batch:
        """Images to float (B, 3, H, W) with scaled pixels, masks to int64 (B, H, W)."""
        image = batch["image"].to(self.device, non_blocking=True)
        mask = batch["mask"].to(self.device, non_blocking=True)
        return {"image": self.inference.scaled(image), "mask": mask.long()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        """The number of pixels that are not ignored, each times the weight of its class."""
        return {"pixels": weight_sum(batch["mask"], self.class_weights).double()}

    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """Cross entropy per pixel, Dice per image, and the auxiliary head's cross entropy."""
        outputs, mask = model(batch["image"]), batch["mask"]
        pixels = denominators["pixels"].clamp(min=TINY)
        parts = {"ce": cross_entropy_sum(outputs["out"], mask, self.class_weights) / pixels}
        if self.options.loss == "ce_dice":
            parts["dice"] = dice_sum(outputs["out"], mask) / denominators["images"]
        if "aux" in outputs:
            aux = cross_entropy_sum(outputs["aux"], mask, self.class_weights)
            parts["aux"] = self.options.aux_loss * aux / pixels
        return Losses(parts)

    def evaluate(self, model: nn.Module, batches: Iterator[list[dict[str, Tensor]]]) -> Tally:
        """The confusion matrix (K, K), truth against prediction, the losses and denominators."""
        classes = len(self.data.classes)
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = {"confusion": zero.expand(classes, classes).clone()}
        sums |= {name: zero.clone() for name in ("ce", "dice", "pixels", "images")}
        for images in (group for groups in batches for group in groups):
            masks = images["mask"]
            dice = torch.zeros(3, len(masks), classes, dtype=self.dtype, device=self.device)
            size = tuple(masks.shape[-2:])
            for number, window, logits in self.inference.parts(model, images["image"], size):
                mask = window.of(masks[number]).to(self.device, non_blocking=True).long()
                confusion, cross_entropy = count_pixels(logits, mask, self.class_weights)
                sums["confusion"] += confusion
                sums["ce"] += cross_entropy
                sums["pixels"] += weight_sum(mask, self.class_weights).double()
                if self.options.loss == "ce_dice":
                    dice[:, number] += torch.stack(dice_counts(logits, mask))
            sums["dice"] += dice_of_counts(dice)
            sums["images"] += len(masks)
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
            image, truth = sample["image"], sample["mask"]
            (found,) = self.inference.results(model, image[None], [{"size": tuple(truth.shape)}])
            panels.append(segmentation_panel(image, truth, found.mask, self.data.colors))
        if not panels:
            return {}
        return {"predictions": contact_sheet(panels, self.data.classes, self.data.colors)}
