"""Train an image classifier with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_classification.py
    torchrun --nproc_per_node=2 train_classification.py --dataset folder --data_dir ~/flowers
    python train_classification.py --config recipes/classification/imagenette_cpu.yaml \\
        --data_dir ~/imagenette

Without options it learns shapes on textured grounds, which it draws itself. On a machine without a
GPU the processes train together on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.launch import close, create_accelerator, read_options, run
from engine.options import CommonOptions, option
from errors import UserError


@dataclass
class Options(CommonOptions):
    """Options of classification, beside those of every script."""

    model: str = option("syncbnnet", "classifier; docs/models.md lists them")
    image_size: list[int] = option([48, 48], "height and width of the network's input")
    crop_area: list[float] = option([0.35, 1.0], "smallest and largest area of a random crop")
    crop_padding: int | None = option(
        None, "instead of resized crops, shift the padded picture by up to so many pixels"
    )
    crop_ratio: float = option(
        0.875, "share of the picture's side that evaluation looks at (1: all of it)"
    )
    hflip: float = option(0.5, "probability of a horizontal flip")
    auto_augment: Literal["none", "rand_augment", "trivial_augment"] = option(
        "none", "policy of random operations"
    )
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0, 0.0], "changes of brightness, contrast, saturation and hue (hue up to 0.5)"
    )
    erasing: float = option(0.0, "probability of erasing a window")
    mixup: float = option(0.0, "alpha of mixup (0: off, usual 0.2)")
    cutmix: float = option(0.0, "alpha of CutMix (0: off, usual 1)")
    label_smoothing: float = option(0.0, "share of the target spread over all classes")
    image_column: str = option("image", "name of the image column", datasets=("hub",))
    label_column: str = option("label", "name of the label column", datasets=("hub",))
    pictures: int = option(18, "misclassified pictures drawn at each evaluation", resume="free")
    batch_size: int = option(8, "samples per process and forward pass", resume="free")
    optimizer: Literal["sgd", "adamw"] = option("adamw", "SGD with momentum, or AdamW")
    lr: float = option(0.004, "peak learning rate")
    weight_decay: float = option(0.05, "weight decay")
    warmup_steps: int = option(50, "optimizer steps of linear warm-up")
    epochs: float = option(20, "length of training in passes over the data", resume="free")
    ema: float = option(0.99, "decay of the averaged weights that are evaluated and saved (0: off)")

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        self.check_lengths(image_size=2, crop_area=2)
        self.check_color_jitter()
        self.check_shares("hflip", "erasing", "label_smoothing")
        if min(self.mixup, self.cutmix, self.pictures, self.crop_padding or 0) < 0:
            raise UserError("--mixup, --cutmix, --crop_padding and --pictures are at least 0.")
        if min(self.image_size) < 8:
            raise UserError(f"--image_size {self.image_size} must be at least [8, 8].")
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1 or not 0 < self.crop_ratio <= 1:
            raise UserError(
                f"--crop_area {self.crop_area} must ascend and lie, like --crop_ratio, above 0 and "
                "up to 1."
            )


if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(Options, __doc__)

import torch
from torch import Tensor, nn

from data.check import check_splits
from data.classification.check import survey
from data.classification.dataset import (
    ClassificationData,
    ClassificationDataset,
    collate_eval,
    collate_train,
    load_classification,
)
from data.classification.mixing import Mixing
from data.classification.pictures import misclassified_picture
from data.classification.transforms import eval_transform, train_transform
from data.confusion_picture import confusion_picture
from engine.loop import Trainer
from engine.normalization import prepare_model
from engine.plan import per_process_batch
from engine.task import Losses, Tally
from models.classification import build_classification_model, normalization
from models.classification_scores import ScoreCounts, confusion_of, cross_entropy_sum, scores


class Classification:
    """The task, as ``engine.task.Task`` describes it."""

    name = "classification"
    best_metric = "top1"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(self, options: Options, data: ClassificationData, device: torch.device) -> None:
        self.options, self.data, self.device = options, data, device
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
        self.train_data = ClassificationDataset(data.train, data, augment, options.seed, mixing)
        middle = eval_transform(size, options.crop_ratio)
        self.val_data = ClassificationDataset(data.val, data, middle, options.seed)
        self.description = {"classes": data.classes}
        self.dtype = torch.float64 if options.double else torch.float32
        rgb = torch.tensor(normalization(options.model), dtype=self.dtype)
        self.mean, self.std = (255 * rgb).to(device)[:, None, :, None, None]

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bytes to the device, there to normalised floats."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        image = (moved["image"].to(self.dtype) - self.mean) / self.std
        if self.options.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return moved | {"image": image}

    def normalizers(self, batch: dict[str, Tensor]) -> Tensor:
        """Pictures."""
        return torch.full((1,), len(batch["label"]), dtype=torch.float64, device=self.device)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], normalizers: Tensor) -> Losses:
        """Cross entropy per picture."""
        loss = cross_entropy_sum(model(batch["image"]), batch, self.options.label_smoothing)
        return Losses({"ce": loss / normalizers[0]})

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> Tally:
        """Counts for the scores, and the surest mistakes."""
        counts = ScoreCounts(len(self.data.classes), self.device)
        answers = []  # on the device, so that no batch waits for it
        for batch in map(self.to_device, batches):
            probabilities = model(batch["image"]).to(self.dtype).softmax(1)
            counts.add(probabilities, batch["label"])
            if self.options.pictures:
                best, predictions = probabilities.max(1)
                answers.append(torch.stack([best, predictions, batch["label"], batch["index"]]))
        return Tally(counts.vector(), self._surest(answers))

    def _surest(self, answers: list[Tensor]) -> list[list[float]]:
        """The surest mistakes among (probability, prediction, truth, index), each a row (B,)."""
        if not answers:
            return []
        rows = torch.cat(answers, 1).T.cpu()
        mistakes = rows[rows[:, 1] != rows[:, 2]].tolist()
        return sorted(mistakes, reverse=True)[: self.options.pictures]

    def metrics(self, sums: Tensor, records: list) -> dict[str, float]:
        """Top-1, top-5 of more than five classes, mean recall of the classes, loss."""
        self.confusion = confusion_of(sums)
        self.mistakes = sorted(records, reverse=True)[: self.options.pictures]
        return scores(sums, self.data.classes)

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """The confusion matrix, and the pictures about which the model was most surely wrong."""
        pictures = {"confusion": confusion_picture(self.confusion, self.data.classes)}
        if self.options.pictures:
            images = [self.val_data[0, int(index)]["image"] for *_, index in self.mistakes]
            sure, predictions, truths, _ = zip(*self.mistakes) if images else [()] * 4  # noqa: B905
            classes = self.data.classes
            pictures["misclassified"] = misclassified_picture(
                images, truths, predictions, sure, classes
            )
        return pictures


def main(options: Options) -> int:
    """Options, data, model, normalisation, Accelerate, training: in this order."""
    accelerator = create_accelerator(options)
    batch_size = per_process_batch(options, accelerator.num_processes)

    data = load_classification(
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit_train=options.limit_train or None,
        limit_val=options.limit_val or None,
        seed=options.seed,
        image_size=tuple(options.image_size),
        image_column=options.image_column,
        label_column=options.label_column,
    )
    for note in data.notes:
        accelerator.print(note)
    task = Classification(options, data, accelerator.device)
    if options.check_data:
        if not accelerator.is_main_process:
            return 0
        splits = {"train": task.train_data, "val": task.val_data}
        return check_splits(splits, survey, data.classes, options.num_workers)

    torch.manual_seed(options.seed)
    model = build_classification_model(
        options.model,
        len(data.classes),
        weights=options.weights,
        image_size=tuple(options.image_size),
    )
    model, norm = prepare_model(accelerator, model, batch_size, options)
    status = Trainer(accelerator, task, model, norm, options).fit()
    close(accelerator)
    return status


if __name__ == "__main__":
    run(main, options)
