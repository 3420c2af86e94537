"""Detection as the engine sees it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.balance import repeat_factors
from engine.plan import Plan
from engine.task import Batch, Evaluation, Losses, Tally, Task, evenly_spaced_samples
from figures.sheet import contact_sheet
from models.detector_interface import DetectorLosses, on_cpu
from tasks.detection.batches import collate_eval, collate_train
from tasks.detection.dataset import EvalDataset, Reader, TrainDataset
from tasks.detection.figures import detection_panel, drawn_truth, pr_curves_figure, with_crowds
from tasks.detection.inference import DetectionInference, DetectionResult
from tasks.detection.metrics import Precision, average_precision
from tasks.detection.options import DetectionOptions
from tasks.detection.records import Records
from tasks.detection.rows import DetectionData
from tasks.detection.transforms import TrainTransform


class Detection(Task):
    """A box, a class and, with Mask R-CNN, a mask for every object of an image.

    Args:
        options: the script's options.
        data: the data set.
        plan: the run's arithmetic, which tells when mosaics end.
        device: on which batches are computed.
    """

    name = "detection"
    best_metric = "ap"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(
        self, options: DetectionOptions, data: DetectionData, plan: Plan, device: torch.device
    ) -> None:
        self.options, self.data, self.device = options, data, device
        self.inference = DetectionInference(options, data.classes, data.colors, device)
        self.inference.at_once = plan.batch_size
        mosaic_until = round(plan.total_samples * (1 - options.close_mosaic))
        augment = TrainTransform(options, mosaic_until)
        masks = options.has_masks
        reader = Reader(data.train, options.needs_masks)
        self.train_data = TrainDataset(reader, augment, options.seed, masks)
        if options.balance_classes:
            categories = (objects["category"] for objects in data.train["objects"])
            self.train_data.weights = repeat_factors(list(categories))
        self.val_data = EvalDataset(
            Reader(data.val, masks), self.inference.letterbox, masks, bool(self.inference.tiles)
        )
        self.identity = {"classes": data.classes}
        self.dtype = self.inference.dtype

    def build_model(self) -> nn.Module:
        """The network; models/detector_interface.py says what goes in and comes out."""
        return self.inference.build_model(self.options.weights)

    def to_device(self, batch: dict[str, Any]) -> Batch:
        """Image to float (B, 3, H, W) from 0 to 1, targets as they are; the truth isn't moved."""
        moved = {
            name: batch[name].to(self.device, non_blocking=True)
            for name in ("image", "boxes", "labels", "masks")
            if name in batch
        }
        image = self.inference.scaled(moved["image"])
        return batch | moved | {"image": image, "boxes": moved["boxes"].to(self.dtype)}

    def losses(self, model: nn.Module, batch: Batch, denominators: dict[str, Tensor]) -> Losses:
        """The parts of the detector's loss, per positive or per image as ``divides_by`` says.

        The forward pass decides which predictions are positive, so that division is left to the
        engine.
        """
        detector = getattr(model, "module", model)  # without DDP around it
        parts, positives = model(batch["image"], _targets(batch))
        counts = {"objects": (batch["labels"] >= 0).sum()}
        if detector.divides_by == "positives":
            return Losses(parts, counts | {"positives": positives}, divide_by="positives")
        images = denominators["images"]
        return Losses({name: part / images for name, part in parts.items()}, counts)

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Any]]) -> Tally:
        """The loss and its denominator as sums; a record of every image's truth and detections."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        sums = {"loss": zero.clone(), "denominator": zero.clone()}
        records = []
        for batch in map(self.to_device, batches):
            # Two-stage detectors compute their loss on randomly drawn proposals.
            torch.manual_seed(int(batch["index"][0]))
            losses, found = self._losses_and_objects(model, batch)
            sums["loss"] += sum(losses.parts.values())
            by_positives = model.divides_by == "positives"
            sums["denominator"] += losses.positives if by_positives else len(batch["image"])
            records += map(
                image_record,
                batch["index"].tolist(),
                batch["truth"],
                found,
            )
        return Tally(sums, [Records.joined(records)] if records else [])

    def _losses_and_objects(
        self, model: nn.Module, batch: Batch
    ) -> tuple[DetectorLosses, list[DetectionResult]]:
        """The loss of letterboxed images, and what is in them, or in tiles of the originals."""
        if tiles := self.inference.tiles:
            losses = model(batch["image"], _targets(batch))
            pictures = batch["picture"]
            return losses, [self.inference.in_tiles(model, each, tiles) for each in pictures]
        losses, found = model(batch["image"], _targets(batch), detect=True)
        return losses, self.inference.in_original(found, _metas(batch))

    def score(self, sums: dict[str, Tensor], records: list[Records]) -> Evaluation:
        """COCO's average precision and recall, also per class and of masks; the loss."""
        classes = self.data.classes
        precision = average_precision(records, classes)
        masks = {}
        if self.options.has_masks:
            found = average_precision(records, classes, "segm").metrics
            masks = {f"mask_{name}": value for name, value in found.items()}
        metrics = {
            **precision.metrics,
            **masks,
            "loss": (sums["loss"] / sums["denominator"].clamp(min=1)).item(),
            **{f"ap/{name}": value for name, value in precision.ap_per_class.items()},
            **{f"ap50/{name}": value for name, value in precision.ap50_per_class.items()},
        }
        return Evaluation(metrics, details=precision)

    def figures(self, model: nn.Module, details: Precision) -> dict[str, Tensor]:
        """The same validation images every time with truth and detections; the newest curves."""
        names = self.data.classes, self.data.colors
        figures = {}
        if details.curves:
            colors = dict(zip(*names, strict=True))
            figures["precision_recall"] = pr_curves_figure(
                details.curves, details.ap50_per_class, colors
            )
        panels = []
        for sample in evenly_spaced_samples(self.val_data, self.options.pictures):
            image, truth = sample["image"], with_crowds(sample)
            if tiles := self.inference.tiles:
                image, truth = sample["picture"], drawn_truth(sample["truth"])
                found = self.inference.in_tiles(model, image, tiles).to_draw()
            else:
                (found,) = on_cpu(model(self.inference.of_bytes(model, image[None])))
            score = self.options.picture_score
            panels.append(detection_panel(image, truth, found, *names, score))
        return figures | ({"predictions": contact_sheet(panels, *names)} if panels else {})


def image_record(index: int, truth: dict[str, Any], found: DetectionResult) -> Records:
    """What is in an image and what was found in it, for ``average_precision``."""
    columns = {"boxes": found.xywh, "labels": found.labels, "scores": found.scores.double()}
    if found.rles is not None:
        columns["rles"] = found.rles
    return Records.of_image(index, found.size, truth, columns)


def _metas(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Of each image of a batch, what leads from its letterbox back to it."""
    names = ("size", "scale", "offset")
    columns = (batch[name] for name in names)
    return [dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True)]


def _targets(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("boxes", "labels", "masks") if name in batch}
