"""Train a semantic segmentation network with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_segmentation.py
    torchrun --nproc_per_node=2 train_segmentation.py --dataset camvid --data_dir ~/CamVid
    python train_segmentation.py --config recipes/segmentation/camvid_cpu.yaml --data_dir ~/CamVid

Without options it learns shapes on textured grounds, which it draws itself. On a machine without a
GPU the processes train together on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.launch import close, create_accelerator, read_options, run
from engine.options import CommonOptions, option
from errors import UserError

WEIGHTINGS = ("none", "median_frequency")


@dataclass
class Options(CommonOptions):
    """Options of segmentation, beside those of every script."""

    model: str = option("unet", "segmentation model; docs/models.md lists them")
    backbone: str = option("syncbnnet", "of unet and deeplabv3plus: syncbnnet or timm/<name>")
    aux_loss: float = option(0.0, "weight of the auxiliary head's loss (0: no such head)")
    loss: Literal["ce", "ce_dice"] = option("ce", "cross entropy, or that plus soft Dice")
    class_weights: str | list[float] = option(
        "none", "none, median_frequency, or a weight per class as [1, 2.5, ...]"
    )
    crop_size: list[int] = option([96, 96], "height and width of the training crops")
    scale_range: list[float] = option([0.5, 2.0], "smallest and largest random scaling")
    hflip: float = option(0.5, "probability of a horizontal flip")
    color_jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.0], "changes of brightness, contrast, saturation and hue (hue up to 0.5)"
    )
    eval_size: list[int] | None = option(
        None, "resize validation images to this height and width; scored at the label's own"
    )
    class_names: str | list[str] | None = option(
        None,
        "class names in order, or a file of them",
        resume="free",
        datasets=("folder", "hub"),
    )
    image_column: str = option("image", "name of the image column", datasets=("hub",))
    mask_column: str = option("annotation", "name of the mask column", datasets=("hub",))
    image_size: list[int] = option(
        [96, 96], "height and width of the pictures", datasets=("synthetic",)
    )
    pictures: int = option(4, "validation pictures drawn at each evaluation", resume="free")
    optimizer: Literal["sgd", "adamw"] = option("adamw", "SGD with momentum, or AdamW")
    lr: float = option(0.004, "peak learning rate")
    weight_decay: float = option(0.01, "weight decay")
    warmup_steps: int = option(20, "optimizer steps of linear warm-up")
    ema: float = option(0.99, "decay of the averaged weights that are evaluated and saved (0: off)")

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        self.check_lengths(crop_size=2, scale_range=2, eval_size=2, image_size=2)
        self.check_color_jitter()
        sizes = [*self.image_size, *(self.eval_size or [])]
        if min(sizes) < 16:
            raise UserError("--image_size and --eval_size must be at least [16, 16].")
        self.check_shares("hflip")
        if min(self.pictures, self.aux_loss) < 0:
            raise UserError("--pictures and --aux_loss are at least 0.")
        if min(self.crop_size) < 16 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(
                f"--crop_size {self.crop_size} must be at least [16, 16] and --scale_range "
                f"{self.scale_range} positive and ascending."
            )
        if not isinstance(self.class_weights, str) and not (
            min(self.class_weights) >= 0 and max(self.class_weights) > 0
        ):
            raise UserError(
                f"--class_weights {self.class_weights} must be positive, or 0 for some."
            )
        if isinstance(self.class_weights, str) and self.class_weights not in WEIGHTINGS:
            raise UserError(
                f"--class_weights is {self.class_weights!r}; it takes {' or '.join(WEIGHTINGS)} or "
                "a list of a weight per class."
            )


if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(Options, __doc__)

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from data.check import check_splits
from data.pictures import contact_sheet, segmentation_panel
from data.segmentation import transforms as transforms
from data.segmentation.check import survey
from data.segmentation.dataset import (
    SegmentationData,
    SegmentationDataset,
    collate_eval,
    collate_train,
    load_segmentation,
)
from engine.loop import Trainer
from engine.normalization import prepare_model
from engine.plan import per_process_batch
from engine.task import Losses, Tally
from models.backbones import IMAGENET_MEAN, IMAGENET_STD
from models.segmentation import build_segmentation_model
from models.segmentation_loss import (
    IGNORE,
    cross_entropy_sum,
    dice_sum,
    median_frequency_weights,
    weight_sum,
)

# Where no pixel counts, the loss is 0 / TINY.
TINY = 1e-12


class Segmentation:
    """The task, as ``engine.task.Task`` describes it."""

    name = "segmentation"
    best_metric = "miou"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(self, options: Options, data: SegmentationData, device: torch.device) -> None:
        self.options, self.data, self.device = options, data, device
        self.train_data = SegmentationDataset(
            data.train,
            data,
            transforms.train_transform(
                crop_size=tuple(options.crop_size),
                scale=tuple(options.scale_range),
                hflip=options.hflip,
                color_jitter=tuple(options.color_jitter),
            ),
            options.seed,
        )
        resize = transforms.eval_transform(options.eval_size and tuple(options.eval_size))
        self.val_data = SegmentationDataset(data.val, data, resize, options.seed)
        self.description = {"classes": data.classes}
        self.dtype = torch.float64 if options.double else torch.float32
        rgb = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=self.dtype)
        self.mean, self.std = (255 * rgb).to(device)[:, None, :, None, None]
        self.class_weights = self._class_weights()

    def _class_weights(self) -> Tensor | None:
        wanted = self.options.class_weights
        if wanted == "none" or self.options.check_data:
            return None
        if wanted == "median_frequency":
            # Reads every mask once, and all processes the same ones: the weights agree.
            seen = survey(self.train_data, self.options.num_workers, images=False)
            wanted = median_frequency_weights(seen.pixels[:-1], seen.images)
        if len(wanted) != len(self.data.classes):
            raise UserError(
                f"--class_weights has {len(wanted)} weights for {len(self.data.classes)} classes "
                f"({', '.join(self.data.classes)}); give one for each."
            )
        return torch.as_tensor(wanted, dtype=self.dtype, device=self.device)

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bytes to the device; there to normalised floats and class ids."""
        image = batch["image"].to(self.device, non_blocking=True)
        mask = batch["mask"].to(self.device, non_blocking=True)
        image = (image.to(self.dtype) - self.mean) / self.std
        if self.options.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return {"image": image, "mask": mask.long()}

    def normalizers(self, batch: dict[str, Tensor]) -> Tensor:
        """Valid pixels times their classes' weights, and pictures."""
        pixels = weight_sum(batch["mask"], self.class_weights).double()
        return torch.stack([pixels, torch.full_like(pixels, len(batch["mask"]))])

    def losses(self, model: nn.Module, batch: dict[str, Tensor], normalizers: Tensor) -> Losses:
        """Cross entropy per pixel, soft Dice per picture, the auxiliary head's cross entropy."""
        outputs, mask = model(batch["image"]), batch["mask"]
        losses = self._main_losses(outputs["out"], mask, normalizers)
        if "aux" in outputs:
            aux = cross_entropy_sum(outputs["aux"], mask, self.class_weights)
            losses["aux"] = self.options.aux_loss * aux / normalizers[0].clamp(min=TINY)
        return Losses(losses)

    def _main_losses(self, logits: Tensor, mask: Tensor, normalizers: Tensor) -> dict[str, Tensor]:
        cross_entropy = cross_entropy_sum(logits, mask, self.class_weights)
        losses = {"ce": cross_entropy / normalizers[0].clamp(min=TINY)}
        if self.options.loss == "ce_dice":
            losses["dice"] = dice_sum(logits, mask) / normalizers[1]
        return losses

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) at the label's resolution."""
        logits = model(batch["image"])["out"].to(self.dtype)
        size = batch["mask"].shape[-2:]
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def evaluate(self, model: nn.Module, batches: Iterator[list[dict[str, Tensor]]]) -> Tally:
        """The confusion matrix (truth, prediction), the loss's parts and its denominators."""
        classes = len(self.data.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.float64, device=self.device)
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        one = sums.new_ones(2)
        for batch in (self.to_device(group) for groups in batches for group in groups):
            logits = self.predict(model, batch)
            losses = self._main_losses(logits, batch["mask"], one)
            sums[: len(losses)] += torch.stack(list(losses.values()))
            sums[2:] += self.normalizers(batch)
            confusion += multiclass_confusion_matrix(
                logits.argmax(1), batch["mask"], classes, ignore_index=IGNORE, validate_args=False
            )
        return Tally(torch.cat([confusion.flatten(), sums]))

    def metrics(self, sums: Tensor, _records: list) -> dict[str, float]:
        """Mean IoU and IoU per class over the classes that occur, pixel accuracy, loss."""
        classes = len(self.data.classes)
        confusion, (ce, dice, pixels, pictures) = sums[:-4].view(classes, classes), sums[-4:]
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        iou = {
            name: (hit / total).item()
            for name, hit, total in zip(self.data.classes, hits, union, strict=True)
            if total > 0
        }
        return {
            "miou": sum(iou.values()) / max(1, len(iou)),
            "pixel_accuracy": (hits.sum() / confusion.sum().clamp(min=1)).item(),
            "loss": (ce / pixels.clamp(min=TINY) + dice / pictures.clamp(min=1)).item(),
            **{f"iou/{name}": value for name, value in iou.items()},
        }

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """The same validation pictures every time: image, truth and prediction."""
        count = min(self.options.pictures, len(self.val_data))
        if not count:
            return {}
        was_training = model.training
        model.eval()
        panels = []
        for number in range(count):
            sample = self.val_data[0, number * len(self.val_data) // count]
            with torch.inference_mode():
                batch = self.to_device(collate_train([sample]))
                prediction = self.predict(model, batch).argmax(1)[0]
            panels.append(
                segmentation_panel(sample["image"], sample["mask"], prediction, self.data.colors)
            )
        model.train(was_training)
        return {"predictions": contact_sheet(panels, self.data.classes, self.data.colors)}


def main(options: Options) -> int:
    """Options, data, model, normalisation, Accelerate, training: in this order."""
    accelerator = create_accelerator(options)
    batch_size = per_process_batch(options, accelerator.num_processes)

    data = load_segmentation(
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit_train=options.limit_train or None,
        limit_val=options.limit_val or None,
        seed=options.seed,
        image_column=options.image_column,
        mask_column=options.mask_column,
        class_names=options.class_names,
        image_size=tuple(options.image_size),
    )
    for note in data.notes:
        accelerator.print(note)
    task = Segmentation(options, data, accelerator.device)
    if options.check_data:
        if not accelerator.is_main_process:
            return 0
        splits = {"train": task.train_data, "val": task.val_data}
        return check_splits(splits, survey, data.classes, options.num_workers)

    torch.manual_seed(options.seed)
    model = build_segmentation_model(
        options.model,
        len(data.classes),
        backbone=options.backbone,
        weights=options.weights,
        aux_loss=options.aux_loss > 0,
    )
    model, norm = prepare_model(accelerator, model, batch_size, options)
    if options.model.startswith("deeplabv3_") and norm.kind == "bn" and batch_size == 1:
        raise UserError(
            f"{options.model} normalises one value per picture and channel, which takes more than "
            "one picture: use --batch_size 2, --norm sync_bn on several processes, or --model "
            "deeplabv3plus."
        )
    status = Trainer(accelerator, task, model, norm, options).fit()
    close(accelerator)
    return status


if __name__ == "__main__":
    run(main, options)
