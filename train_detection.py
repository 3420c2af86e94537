"""Train an object detector with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_detection.py
    torchrun --nproc_per_node=2 train_detection.py --dataset coco --data_dir ~/coco --model yolo_s
    python train_detection.py --config recipes/detection/bccd_cpu.yaml --data_dir ~/BCCD

Without options it learns to find shapes on textured grounds, which it draws itself. On a machine
without a GPU the processes train together on the CPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engine.launch import close, create_accelerator, read_options, run
from engine.options import CommonOptions, option
from errors import UserError


@dataclass
class Options(CommonOptions):
    """Options of detection, beside those of every script."""

    model: str = option("yolo_nano", "detection model; docs/models.md lists them")
    backbone: str | None = option(
        None, "of fasterrcnn, retinanet, fcos and the yolos: syncbnnet or timm/<name>"
    )
    trainable_layers: int | None = option(
        None, "stages of a pretrained torchvision detector's backbone that train"
    )
    image_size: list[int] = option([128, 128], "height and width of the network's input")
    scale_range: list[float] = option(
        [0.75, 1.33], "smallest and largest random scaling; 1 fits the picture into the input"
    )
    hflip: float = option(0.5, "probability of a horizontal flip")
    color_jitter: list[float] = option(
        [0.3, 0.3, 0.3, 0.0], "changes of brightness, contrast, saturation and hue (hue up to 0.5)"
    )
    iou_crop: float = option(0.0, "probability of SSD's crop around some of the objects")
    mosaic: float = option(0.0, "probability of joining four pictures")
    mixup: float = option(0.0, "probability of blending two pictures")
    copy_paste: float = option(0.0, "probability of pasting objects, which needs masks")
    close_mosaic: float = option(0.1, "share of the run, at its end, without mosaic and mixup")
    class_names: str | list[str] | None = option(
        None,
        "class names in order, or a file of them",
        resume="free",
        datasets=("coco", "voc", "yolo", "hub"),
    )
    image_column: str = option("image", "name of the image column", datasets=("hub",))
    objects_column: str = option("objects", "name of the column of objects", datasets=("hub",))
    bbox_format: Literal["coco", "voc", "yolo"] = option(
        "coco",
        "boxes as x y width height, as corners, or as centre and size from 0 to 1",
        datasets=("hub",),
    )
    max_detections: int = option(100, "detections per picture at most")
    pictures: int = option(6, "validation pictures drawn at each evaluation", resume="free")
    picture_score: float = option(0.3, "lowest score of a detection in a picture", resume="free")
    batch_size: int = option(8, "samples per process and forward pass", resume="free")
    optimizer: Literal["sgd", "adamw"] = option("adamw", "SGD with momentum 0.9, or AdamW")
    lr: float = option(0.004, "peak learning rate")
    weight_decay: float = option(0.01, "weight decay")
    warmup_steps: int = option(50, "optimizer steps of linear warm-up")
    epochs: float = option(40, "length of training in passes over the data", resume="free")
    ema: float = option(0.99, "decay of the averaged weights that are evaluated and saved (0: off)")

    @property
    def has_masks(self) -> bool:
        """Whether the model finds masks beside boxes."""
        return self.model.startswith("maskrcnn")

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        self.check_lengths(image_size=2, scale_range=2)
        self.check_color_jitter()
        self.check_shares("hflip", "iou_crop", "mosaic", "mixup", "copy_paste", "close_mosaic")
        self.check_shares("picture_score")
        if min(self.image_size) < 32:
            raise UserError(f"--image_size {self.image_size} must be at least [32, 32].")
        if not 0 < self.scale_range[0] <= self.scale_range[1] < math.inf:
            raise UserError(f"--scale_range {self.scale_range} must be positive and ascending.")
        if not 1 <= self.max_detections <= 100:
            raise UserError(
                f"--max_detections {self.max_detections} must be from 1 to 100, since COCO's "
                "average precision counts no more in a picture."
            )
        if self.pictures < 0:
            raise UserError(f"--pictures {self.pictures} must be at least 0.")


if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(Options, __doc__)

import torch
from torch import Tensor, nn

from data.check import check_splits
from data.detection import instance_masks
from data.detection.check import survey_detection
from data.detection.coco_ap import PictureRecord, Precision, average_precision
from data.detection.dataset import (
    DetectionData,
    DetectionDataset,
    collate_eval,
    collate_train,
    load_detection,
    to_original,
)
from data.detection.pictures import detection_panel, with_crowds
from data.detection.pr_curves import pr_curves_picture
from data.detection.transforms import eval_transform, train_transform
from data.pictures import contact_sheet
from engine.loop import Trainer
from engine.normalization import prepare_model
from engine.plan import make_plan, per_process_batch
from engine.task import Losses, Tally
from models.detection import build_detection_model
from models.detector import on_cpu


class Detection:
    """The task, as ``engine.task.Task`` describes it."""

    name = "detection"
    best_metric = "ap"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(
        self, options: Options, data: DetectionData, device: torch.device, mosaic_until: int
    ) -> None:
        self.options, self.data, self.device = options, data, device
        size, masks = tuple(options.image_size), options.has_masks
        augment = train_transform(
            size,
            scale_range=tuple(options.scale_range),
            hflip=options.hflip,
            color_jitter=tuple(options.color_jitter),
            iou_crop=options.iou_crop,
            mosaic=options.mosaic,
            mixup=options.mixup,
            copy_paste=options.copy_paste,
            mosaic_until=mosaic_until,
        )
        self.train_data = DetectionDataset(data.train, data, augment, options.seed, masks)
        self.val_data = DetectionDataset(data.val, data, eval_transform(size), options.seed, masks)
        self.description = {"classes": data.classes}
        self.dtype = torch.float64 if options.double else torch.float32
        self.precision = Precision({})

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Bytes to the device, there to floats in [0, 1]; the truth stays where it is."""
        moved = {
            name: batch[name].to(self.device, non_blocking=True)
            for name in ("image", "boxes", "labels", "masks")
            if name in batch
        }
        image = moved["image"].to(self.dtype) / 255
        if self.options.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return batch | moved | {"image": image, "boxes": moved["boxes"].to(self.dtype)}

    def normalizers(self, batch: dict[str, Any]) -> Tensor:
        """Pictures."""
        return torch.full((1,), len(batch["image"]), dtype=torch.float64, device=self.device)

    def losses(self, model: nn.Module, batch: dict[str, Any], normalizers: Tensor) -> Losses:
        """The detector's own parts, per positive where the detector counts those, or per picture.

        Which predictions are positive shows in the forward pass only, so that division is left to
        the engine.
        """
        detector = getattr(model, "module", model)  # without DDP around it
        parts, positives = model(batch["image"], _targets(batch))
        counts = {"objects": (batch["labels"] >= 0).sum()}
        if detector.divides_by == "positives":
            return Losses(parts, counts | {"positives": positives}, divide_by="positives")
        return Losses({name: part / normalizers[0] for name, part in parts.items()}, counts)

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Any]]) -> Tally:
        """The loss and its denominator as sums; of every picture what is in it and was found."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        records = []
        for batch in map(self.to_device, batches):
            # Two-stage detectors compute their loss on proposals drawn at random.
            torch.manual_seed(int(batch["index"][0]))
            losses, found = model(batch["image"], _targets(batch), detect=True)
            sums[0] += sum(losses.parts.values())
            sums[1] += losses.positives if model.divides_by == "positives" else len(batch["image"])
            records += [self._record(batch, *each) for each in enumerate(on_cpu(found))]
        return Tally(sums, records)

    def _record(
        self, batch: dict[str, Any], number: int, found: dict[str, Tensor]
    ) -> PictureRecord:
        """What was found in a picture of a batch, in the picture's own pixels."""
        meta = {name: batch[name][number] for name in ("size", "scale", "offset")}
        boxes = to_original(found["boxes"], meta)
        rles = None
        if "masks" in found:
            pairs = zip(found["masks"].cpu(), boxes, strict=True)
            rles = [instance_masks.encode_original(mask, box, meta) for mask, box in pairs]
        boxes[:, 2:] -= boxes[:, :2]
        return PictureRecord(
            index=int(batch["index"][number]),
            size=tuple(meta["size"].tolist()),
            truth=batch["truth"][number],
            boxes=boxes.numpy(),
            scores=found["scores"].double().numpy(),
            labels=found["labels"].numpy(),
            rles=rles,
        )

    def metrics(self, sums: Tensor, records: list[PictureRecord]) -> dict[str, float]:
        """COCO's average precision and recall, per class too, of masks too; the loss."""
        classes = self.data.classes
        self.precision = average_precision(records, classes)
        masks = {}
        if self.options.has_masks:
            found = average_precision(records, classes, "segm").metrics
            masks = {f"mask_{name}": value for name, value in found.items()}
        return {
            **self.precision.metrics,
            **masks,
            "loss": (sums[0] / sums[1].clamp(min=1)).item(),
            **{f"ap/{name}": value for name, value in self.precision.ap_per_class.items()},
            **{f"ap50/{name}": value for name, value in self.precision.ap50_per_class.items()},
        }

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """The same validation pictures every time, truth beside detections; the newest curves."""
        names = self.data.classes, self.data.colors
        pictures = {}
        if self.precision.curves:
            pictures["precision_recall"] = pr_curves_picture(
                self.precision.curves,
                self.precision.ap50_per_class,
                dict(zip(*names, strict=True)),
            )
        count = min(self.options.pictures, len(self.val_data))
        if not count:
            return pictures
        was_training = model.training
        model.eval()
        panels = []
        for number in range(count):
            sample = self.val_data[0, number * len(self.val_data) // count]
            with torch.inference_mode():
                (found,) = on_cpu(model(self.to_device(collate_eval([sample]))["image"]))
            score = self.options.picture_score
            panels.append(
                detection_panel(sample["image"], with_crowds(sample), found, *names, score)
            )
        model.train(was_training)
        return pictures | {"predictions": contact_sheet(panels, *names)}


def _targets(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("boxes", "labels", "masks") if name in batch}


def main(options: Options) -> int:
    """Options, data, model, normalisation, Accelerate, training: in this order."""
    accelerator = create_accelerator(options)
    batch_size = per_process_batch(options, accelerator.num_processes)

    data = load_detection(
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit_train=options.limit_train or None,
        limit_val=options.limit_val or None,
        seed=options.seed,
        image_size=tuple(options.image_size),
        class_names=options.class_names,
        image_column=options.image_column,
        objects_column=options.objects_column,
        bbox_format=options.bbox_format,
        with_masks=options.has_masks or options.copy_paste > 0,
    )
    for note in data.notes:
        accelerator.print(note)
    plan = make_plan(options, len(data.train), accelerator.num_processes)
    samples = plan.total_steps * plan.global_batch_size
    mosaic_until = round(samples * (1 - options.close_mosaic))
    task = Detection(options, data, accelerator.device, mosaic_until)
    if options.check_data:
        if not accelerator.is_main_process:
            return 0
        splits = {"train": task.train_data, "val": task.val_data}
        return check_splits(splits, survey_detection, data.classes, options.num_workers)

    torch.manual_seed(options.seed)
    model = build_detection_model(
        options.model,
        len(data.classes),
        backbone=options.backbone,
        weights=options.weights,
        trainable_layers=options.trainable_layers,
        image_size=tuple(options.image_size),
        class_names=data.classes,
        max_detections=options.max_detections,
    )
    model, norm = prepare_model(accelerator, model, batch_size, options)
    status = Trainer(accelerator, task, model, norm, options).fit()
    close(accelerator)
    return status


if __name__ == "__main__":
    run(main, options)
