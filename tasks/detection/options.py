"""The options of detection."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.fields import (
    SHARE,
    augmentation_option,
    data_option,
    evaluation_option,
    length_option,
    model_option,
)
from engine.options import (
    TrainingOptions,
    color_jitter_option,
    eval_overlap_option,
    eval_tile_option,
)
from errors import UserError

WITHOUT_MASKS = ("voc", "csv", "hub")  # data sources whose objects have boxes alone
FILES = ("coco", "voc", "yolo", "csv", "labelme", "datumaro", "hub")  # sources of users' files


@dataclass
class DetectionOptions(TrainingOptions):
    """Options of detection, beside those of every script."""

    task: ClassVar[str] = "detection"

    class_names: str | list[str] | None = data_option(
        None,
        "class names in order, or a file of them",
        datasets=FILES,
        resume="free",
    )
    image_column: str = data_option("image", "name of the image column", datasets=("hub",))
    objects_column: str = data_option("objects", "name of the column of objects", datasets=("hub",))
    bbox_format: Literal["coco", "voc", "yolo"] = data_option(
        "coco",
        "boxes as x y width height, as corners, or as centre and size from 0 to 1",
        datasets=("hub",),
    )
    data_format: str | None = data_option(
        None,
        "format of the data, one that datumaro reads (default: detected)",
        datasets=("datumaro",),
    )
    exif: Literal["turn", "ignore"] = data_option(
        "turn",
        "what to do with images whose EXIF says how to turn them: as the boxes were drawn",
        datasets=FILES,
    )
    skip_unlabelled: bool = data_option(
        False, "leave out images that nobody has labelled", datasets=FILES
    )
    balance_classes: bool = data_option(
        False, "see images of rare classes more often, by LVIS's repeat factors"
    )
    model: str = model_option("yolo_nano", "detection model; docs/models.md lists them")
    backbone: str | None = model_option(
        None, "of fasterrcnn, retinanet, fcos and the yolos: syncbnnet or timm/<name>"
    )
    trainable_layers: int | None = model_option(
        None, "stages of a pretrained torchvision detector's backbone that train"
    )
    image_size: list[int] = model_option(
        [128, 128], "height and width of the network's input", length=2, at_least=32
    )
    max_detections: int = model_option(
        100,
        "detections per image at most (COCO's average precision counts no more than 100)",
        at_least=1,
        at_most=100,
    )
    epochs: float = length_option(
        40, "length of training in passes over the data", at_least=0, resume="free"
    )
    scale_range: list[float] = augmentation_option(
        [0.75, 1.33],
        "smallest and largest random scaling; 1 fits the image into the input",
        length=2,
        above=0,
        ascending=True,
    )
    hflip: float = augmentation_option(0.5, "probability of a horizontal flip", **SHARE)
    color_jitter: list[float] = color_jitter_option([0.3, 0.3, 0.3, 0.0])
    iou_crop: float = augmentation_option(
        0.0, "probability of SSD's crop around some of the objects", **SHARE
    )
    mosaic: float = augmentation_option(0.0, "probability of joining four images", **SHARE)
    mixup: float = augmentation_option(0.0, "probability of blending two images", **SHARE)
    copy_paste: float = augmentation_option(
        0.0, "probability of pasting objects, which needs masks", **SHARE
    )
    close_mosaic: float = augmentation_option(
        0.1, "share of the run, at its end, without mosaic and mixup", **SHARE
    )
    eval_tile: int = eval_tile_option()
    eval_overlap: float = eval_overlap_option()
    pictures: int = evaluation_option(
        6, "validation images drawn at each evaluation", at_least=0, resume="free"
    )
    picture_score: float = evaluation_option(
        0.3, "lowest score of a detection that is drawn", **SHARE, resume="free"
    )

    @property
    def has_masks(self) -> bool:
        """Whether the model finds masks beside boxes."""
        return self.model.startswith("maskrcnn")

    @property
    def needs_masks(self) -> bool:
        """Whether the model or an augmentation takes the objects' masks."""
        return self.has_masks or self.copy_paste > 0

    def check(self) -> None:
        """Refuse values out of range, and masks of data that have none.

        Raises:
            UserError: the sentence for the user.
        """
        super().check()
        if self.eval_tile and self.has_masks:
            raise UserError(
                f"--model {self.model} finds masks, which are not joined across tiles: leave out "
                "--eval_tile."
            )
        source = self.dataset.partition(":")[0]
        if self.needs_masks and source in WITHOUT_MASKS:
            asking = f"--model {self.model}" if self.has_masks else "--copy_paste"
            raise UserError(
                f"{asking} needs masks, and --dataset {source} has only boxes: use coco, yolo, "
                "labelme or synthetic."
            )
