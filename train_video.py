"""Train a video classifier, 3-D convolutions with synchronised BatchNorm.

    accelerate launch --config_file accelerate_configs/2gpu.yaml train_video.py
    torchrun --nproc_per_node=2 train_video.py --dataset folder --data_dir ~/clips --hflip 0.5
    python train_video.py --config recipes/video/ucf4_cpu.yaml --data_dir ~/ucf

Without options it learns to tell motions apart in videos that it draws itself. On a machine without
a GPU the processes train together on the CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.launch import close, create_accelerator, read_options, run
from engine.options import CommonOptions, option
from errors import UserError


@dataclass
class Options(CommonOptions):
    """Options of video classification, beside those of every script."""

    model: str = option("syncbnnet3d", "video classifier; docs/models.md lists them")
    clip_frames: int = option(8, "frames per clip")
    frame_stride: int = option(2, "every so many frames of the video one is taken")
    fps: float | None = option(None, "frames per second of the clip, instead of a stride")
    crop_size: list[int] = option([56, 56], "height and width of the network's input")
    short_side: list[int] = option(
        [56, 64], "smallest and largest length of the shorter side before a crop in training"
    )
    crop_area: list[float] | None = option(
        None, "smallest and largest area of a resized crop, instead of short_side"
    )
    eval_short_side: int = option(56, "length of the shorter side in evaluation")
    eval_clips: int = option(1, "clips per video in evaluation, evenly spaced")
    eval_crops: Literal[1, 3] = option(1, "windows per clip in evaluation: middle, or three")
    decoder: Literal["auto", "pyav", "torchcodec"] = option(
        "auto", "what decodes video files", resume="free"
    )
    hflip: float = option(
        0.0, "probability of a horizontal flip; not where directions matter, as in synthetic"
    )
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0, 0.0], "changes of brightness, contrast, saturation and hue (hue up to 0.5)"
    )
    label_smoothing: float = option(0.0, "share of the target spread over all classes")
    split: Literal[1, 2, 3] = option(1, "which official split", datasets=("ucf101",))
    video_column: str = option("video", "name of the video column", datasets=("hub",))
    label_column: str = option("label", "name of the label column", datasets=("hub",))
    pictures: int = option(6, "validation clips drawn at each evaluation", resume="free")
    optimizer: Literal["sgd", "adamw"] = option("adamw", "SGD with momentum, or AdamW")
    lr: float = option(0.004, "peak learning rate")
    weight_decay: float = option(0.05, "weight decay")
    warmup_steps: int = option(50, "optimizer steps of linear warm-up")
    epochs: float = option(25, "length of training in passes over the data", resume="free")
    ema: float = option(0.99, "decay of the averaged weights that are evaluated and saved (0: off)")

    def check(self) -> None:
        """Refuse values out of range."""
        super().check()
        self.check_lengths(crop_size=2, short_side=2, crop_area=2)
        self.check_color_jitter()
        self.check_shares("hflip", "label_smoothing")
        if min(self.crop_size) < 16 or self.pictures < 0:
            raise UserError("--crop_size is at least [16, 16] and --pictures at least 0.")
        if self.crop_area and not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise UserError(f"--crop_area {self.crop_area} must ascend, above 0 and up to 1.")


if __name__ == "__main__":
    # Before the slow imports: --help and a mistyped option are answered at once.
    options = read_options(Options, __doc__)

import torch
from torch import Tensor, nn

from data.check import check_splits
from data.confusion_picture import confusion_picture
from data.video.check import survey_videos
from data.video.dataset import (
    ClipOptions,
    VideoData,
    VideoDataset,
    collate_eval,
    collate_train,
    load_video,
)
from data.video.pictures import film_sheet, film_strip
from data.video.transforms import EvalTransform, TrainTransform
from engine.loop import Trainer
from engine.normalization import prepare_model
from engine.plan import per_process_batch
from engine.task import Losses, Tally
from models.classification_scores import ScoreCounts, confusion_of, cross_entropy_sum, scores
from models.video import build_video_model, normalization


class VideoClassification:
    """The task, as ``engine.task.Task`` describes it."""

    name = "video"
    best_metric = "top1"
    collate_train = staticmethod(collate_train)
    collate_eval = staticmethod(collate_eval)

    def __init__(
        self, options: Options, data: VideoData, device: torch.device, batch_size: int
    ) -> None:
        self.options, self.data, self.device, self.batch_size = options, data, device, batch_size
        clip = ClipOptions(
            frames=options.clip_frames,
            stride=options.frame_stride,
            fps=options.fps,
            eval_clips=options.eval_clips,
            decoder=options.decoder,
        )
        size = tuple(options.crop_size)
        augment = TrainTransform(
            size,
            short_side=tuple(options.short_side),
            area=options.crop_area and tuple(options.crop_area),
            hflip=options.hflip,
            color_jitter=tuple(options.color_jitter),
        )
        views = EvalTransform(options.eval_short_side, size, options.eval_crops)
        self.train_data = VideoDataset(data.train, data, clip, augment, options.seed)
        self.val_data = VideoDataset(data.val, data, clip, views, options.seed, train=False)
        self.description = {"classes": data.classes}
        self.dtype = torch.float64 if options.double else torch.float32
        rgb = torch.tensor(normalization(options.model), dtype=self.dtype)
        self.mean, self.std = (255 * rgb).to(device)[:, None, :, None, None, None]

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bytes to the device, there to normalised floats (B, 3, T, H, W).

        The clips of an evaluation, (B, views, T, 3, H, W), follow each other in one batch.
        """
        moved = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        clips = moved["video"].flatten(0, -5).transpose(1, 2)
        clips = clips.to(self.dtype).sub_(self.mean).div_(self.std)  # in place: clips are large
        if self.options.channels_last:
            clips = clips.contiguous(memory_format=torch.channels_last_3d)
        return moved | {"video": clips}

    def normalizers(self, batch: dict[str, Tensor]) -> Tensor:
        """Clips."""
        return torch.full((1,), len(batch["label"]), dtype=torch.float64, device=self.device)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], normalizers: Tensor) -> Losses:
        """Cross entropy per clip; counts the clips whose videos are too short for them."""
        loss = cross_entropy_sum(model(batch["video"]), batch, self.options.label_smoothing)
        return Losses({"ce": loss / normalizers[0]}, counts={"looped": batch["looped"].sum()})

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Probabilities (B, views, K); as many clips at a time as in a training batch."""
        parts = batch["video"].split(self.batch_size)
        logits = torch.cat([model(part) for part in parts]).to(self.dtype)
        return logits.softmax(1).unflatten(0, (len(batch["label"]), -1))

    def evaluate(self, model: nn.Module, batches: Iterator[dict[str, Tensor]]) -> Tally:
        """Counts for the scores of videos, whose views are averaged, and of single clips."""
        classes = len(self.data.classes)
        videos, clips = ScoreCounts(classes, self.device), ScoreCounts(classes, self.device)
        for batch in map(self.to_device, batches):
            probabilities, labels = self.predict(model, batch), batch["label"]
            videos.add(probabilities.mean(1), labels)
            clips.add(probabilities.flatten(0, 1), labels.repeat_interleave(probabilities.shape[1]))
        return Tally(torch.stack([videos.vector(), clips.vector()]).flatten())

    def metrics(self, sums: Tensor, _records: list) -> dict[str, float]:
        """Scores of videos, and the same of clips where a video has several."""
        videos, clips = sums.view(2, -1)
        self.confusion = confusion_of(videos)
        result = scores(videos, self.data.classes)
        if self.options.eval_clips * self.options.eval_crops > 1:
            of_clips = scores(clips, self.data.classes)
            result |= {f"clip_{name}": of_clips[name] for name in of_clips if "top" in name}
        return result

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        """The confusion matrix, and the same validation clips every time with the predictions."""
        pictures = {"confusion": confusion_picture(self.confusion, self.data.classes)}
        count = min(self.options.pictures, len(self.val_data))
        if not count:
            return pictures
        was_training = model.training
        model.eval()
        strips = []
        for number in range(count):
            sample = self.val_data[0, number * len(self.val_data) // count]
            with torch.inference_mode():
                batch = self.to_device(collate_eval([sample]))
                best, guess = self.predict(model, batch)[0].mean(0).max(0)
            names = self.data.classes[sample["label"]], self.data.classes[int(guess)]
            strips.append(film_strip(sample["video"][0], *names, float(best)))
        model.train(was_training)
        return pictures | {"predictions": film_sheet(strips)}


def main(options: Options) -> int:
    """Options, data, model, normalisation, Accelerate, training: in this order."""
    accelerator = create_accelerator(options)
    batch_size = per_process_batch(options, accelerator.num_processes)

    data = load_video(
        dataset=options.dataset,
        data_dir=options.data_dir,
        limit_train=options.limit_train or None,
        limit_val=options.limit_val or None,
        seed=options.seed,
        split=options.split,
        video_column=options.video_column,
        label_column=options.label_column,
    )
    for note in data.notes:
        accelerator.print(note)
    task = VideoClassification(options, data, accelerator.device, batch_size)
    if options.check_data:
        if not accelerator.is_main_process:
            return 0
        splits = {"train": task.train_data, "val": task.val_data}
        return check_splits(splits, survey_videos, data.classes, options.num_workers)

    torch.manual_seed(options.seed)
    model = build_video_model(
        options.model,
        len(data.classes),
        weights=options.weights,
        clip_size=(options.clip_frames, *options.crop_size),
    )
    model, norm = prepare_model(accelerator, model, batch_size, options)
    status = Trainer(accelerator, task, model, norm, options).fit()
    close(accelerator)
    return status


if __name__ == "__main__":
    run(main, options)
