"""The table of the training scripts that all cross-task tests read.

A script joins them, and with them the promise, by standing here.
"""

from dataclasses import dataclass, field

from engine.options import TrainingOptions
from tasks.classification.options import ClassificationOptions
from tasks.detection.options import DetectionOptions
from tasks.segmentation.options import SegmentationOptions
from tasks.video.options import VideoOptions


@dataclass(frozen=True)
class Script:
    """A training script and what is expected of it.

    Attributes:
        task: the name of the task in the summary.
        options: the class of its options.
        tiny: options that make a step take milliseconds.
        drawn: the names of those that are for the data that the script draws itself.
        random: options that switch on what is random or has denominators of its own.
        metrics: some that an evaluation has.
        scalars: some that a training step has, beside the loss.
        figures: all that an evaluation draws.
        changes: options of which each gives another training.
        same: options of which each gives the same training.
        mistakes: options that are refused, and words of the message.
        rounding: by how much float32 curves may differ between numbers of processes, relatively.
        magnified: values of the curves for which that is more.
    """

    task: str
    options: type[TrainingOptions]
    tiny: dict
    random: dict
    metrics: set[str]
    figures: set[str]
    drawn: set[str] = field(default_factory=set)
    scalars: set[str] = field(default_factory=set)
    changes: list[dict] = field(default_factory=list)
    same: list[dict] = field(default_factory=list)
    mistakes: list[tuple[dict, str]] = field(default_factory=list)
    rounding: float = 1e-4
    magnified: dict[str, float] = field(default_factory=dict)

    def tiny_with(self, dataset: str) -> dict:
        """The tiny options that ``dataset`` has a use for."""
        useless = set() if dataset == "synthetic" else self.drawn
        return {name: value for name, value in self.tiny.items() if name not in useless}


# Small, with everything switched on that costs nothing.
SMALL = {
    "limit_train": 16,
    "limit_val": 5,
    "max_steps": 2,
    "batch_size": 2,
    "num_workers": 0,
    "log_every": 1,
    "pictures": 1,
    "warmup_steps": 0,
}

SCRIPTS = {
    "train_segmentation": Script(
        task="segmentation",
        options=SegmentationOptions,
        tiny=SMALL | {"image_size": [32, 32], "crop_size": [32, 32]},
        drawn={"image_size"},
        random={"aux_loss": 0.4, "loss": "ce_dice"},
        metrics={"miou", "pixel_accuracy", "loss"},
        figures={"predictions"},
        same=[{"num_workers": 2}, {"deterministic": True}],
    ),
    "train_detection": Script(
        task="detection",
        options=DetectionOptions,
        tiny=SMALL | {"image_size": [64, 64]},
        random={"mosaic": 0.5, "mixup": 0.3, "iou_crop": 0.5, "balance_classes": True},
        metrics={"ap", "ap50", "ap75", "ar100", "loss"},
        scalars={"loss_cls", "loss_box", "positives_per_image", "objects_per_image"},
        figures={"predictions", "precision_recall"},
        changes=[
            {"model": "yolo_s"},
            {"backbone": "timm/test_resnet"},
            {"scale_range": [1.0, 1.0]},
            {"hflip": 1.0},
            {"color_jitter": [0, 0, 0, 0]},
            {"iou_crop": 1.0},
            {"mosaic": 1.0},
            {"mixup": 1.0},
            {"copy_paste": 1.0},
            {"image_size": [64, 96]},
            {"precise_bn": 2},
            {"balance_classes": True},
        ],
        same=[
            {"num_workers": 2},
            {"deterministic": True},
            {"mosaic": 1.0, "mixup": 1.0, "close_mosaic": 1.0},
            {"picture_score": 0.0},
        ],
        mistakes=[
            ({"model": "yolo_nan"}, "yolo_nano"),
            ({"image_size": [16, 64]}, "--image_size"),
            ({"mosaic": 1.5}, "--mosaic"),
            ({"scale_range": [2, 1]}, "--scale_range"),
            ({"scale_range": [1, float("inf")]}, "--scale_range"),
            ({"color_jitter": [0, 0, 0, 1]}, "--color_jitter"),
            ({"dataset": "coco"}, "--data_dir"),
            ({"dataset": "cocoa"}, "coco"),
            ({"trainable_layers": 2}, "trainable_layers"),
            ({"weights": "default"}, "no published weights"),
            ({"model": "fcos_resnet50_fpn", "backbone": "timm/test_resnet"}, "built in"),
        ],
        # The target scores hold IoU to the sixth power.
        rounding=3e-3,
        magnified={"grad_norm": 5e-3, "positives_per_image": 5e-3},
    ),
    "train_video": Script(
        task="video",
        options=VideoOptions,
        tiny=SMALL
        | {"clip_frames": 4, "crop_size": [24, 24], "short_side": [24, 28], "eval_short_side": 24},
        random={"eval_clips": 2, "label_smoothing": 0.1, "balance_classes": True},
        metrics={"top1", "top5", "mean_recall", "loss"},
        scalars={"looped_per_image"},
        figures={"predictions", "confusion"},
        changes=[
            {"model": "syncbnnet2plus1d"},
            {"model": "single_frame"},
            {"model": "r3d_18"},
            {"clip_frames": 6},
            {"frame_stride": 1},
            {"fps": 4.0},
            {"crop_size": [24, 28], "short_side": [28, 28], "eval_short_side": 28},
            {"short_side": [28, 32]},
            {"crop_area": [0.5, 0.6]},
            {"hflip": 1.0},
            {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
            {"label_smoothing": 0.2},
            {"balance_classes": True},
        ],
        same=[
            {"num_workers": 2},
            {"deterministic": True},
            {"eval_clips": 3},
            {"eval_crops": 3},
            {"decoder": "pyav"},
        ],
        mistakes=[
            ({"model": "r3d_19"}, "r3d_18"),
            ({"model": "s3d"}, "13 frames"),
            ({"clip_frames": 0}, "--clip_frames is 0"),
            ({"crop_size": [64, 64]}, "don't fit"),
            ({"crop_area": [0.5, 2]}, "--crop_area"),
            ({"hflip": 2}, "--hflip"),
            ({"dataset": "ucf101"}, "--data_dir"),
            ({"weights": "default"}, "no published weights"),
        ],
    ),
    "train_classification": Script(
        task="classification",
        options=ClassificationOptions,
        tiny=SMALL | {"image_size": [24, 24]},
        random={"mixup": 0.2, "cutmix": 1.0, "erasing": 0.3},
        metrics={"top1", "top5", "mean_recall", "loss"},
        figures={"misclassified", "confusion"},
        changes=[
            {"model": "lenet"},
            {"model": "timm/test_resnet"},
            {"crop_area": [0.9, 1.0]},
            {"crop_padding": 4},
            {"hflip": 1.0},
            {"auto_augment": "trivial_augment"},
            {"auto_augment": "rand_augment"},
            {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
            {"erasing": 1.0},
            {"mixup": 1.0},
            {"cutmix": 1.0},
            {"label_smoothing": 0.2},
            {"image_size": [32, 24]},
            {"dataset": "fake"},
            {"balance_classes": True},
        ],
        same=[{"num_workers": 2}, {"deterministic": True}, {"crop_ratio": 1.0}, {"pictures": 0}],
        mistakes=[
            ({"model": "resnet19"}, "resnet18"),
            ({"model": "timm/resnet1"}, "timm/resnet18"),
            ({"crop_area": [0.9, 0.1]}, "--crop_area"),
            ({"mixup": -1}, "--mixup"),
            ({"label_smoothing": 2}, "--label_smoothing"),
            ({"image_size": [4, 4]}, "--image_size"),
            ({"dataset": "folder"}, "--data_dir"),
            ({"weights": "backbone"}, "weights"),
        ],
    ),
}
