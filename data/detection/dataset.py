"""Detection data: one schema from every source, a Dataset over it, and its batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from data.class_lists import read_class_file
from data.decode import SampleError, read_image
from data.detection import instance_masks
from data.detection.batches import collate_eval, collate_train
from data.detection.geometry import Sample, boxes_like, to_original
from data.detection.hub import BOX_FORMATS, load_hub
from data.detection.rows import DetectionData, dropped_boxes_note, name_of
from data.detection.sources import SOURCES
from data.detection.transforms import EvalTransform
from data.sources import source_called, spread
from data.stream import epoch_order, sample_seed
from errors import UserError

__all__ = [
    "DetectionData",
    "DetectionDataset",
    "collate_eval",
    "collate_train",
    "load_detection",
    "to_original",
]


def load_detection(
    dataset: str = "synthetic",
    data_dir: str | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    class_names: Sequence[str] | str | None = None,
    image_column: str = "image",
    objects_column: str = "objects",
    bbox_format: str = "coco",
    with_masks: bool = False,
) -> DetectionData:
    """Find a data set's pictures and objects; no picture is decoded yet.

    Args:
        dataset: synthetic, coco, voc, yolo or hub:<id or local path>.
        data_dir: the data set's folder, for all but synthetic and hub.
        limit_train: keep only so many training samples, evenly spaced over the data set.
        limit_val: the same for validation.
        seed: synthetic: seed of the pictures.
        image_size: synthetic: (height, width) of the pictures.
        class_names: coco, voc, yolo and hub: names in the order of the ids, or the path of a class
            file.
        image_column: hub: name of the column of pictures.
        objects_column: hub: name of the column of objects.
        bbox_format: hub: coco (x, y, width, height), voc (corners) or yolo (normalised).
        with_masks: keep the objects' masks (synthetic, coco and yolo).

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    if bbox_format not in BOX_FORMATS:
        raise UserError(f"--bbox_format {bbox_format} is none of {', '.join(BOX_FORMATS)}.")
    names = class_names
    if isinstance(names, str):
        names, _ = read_class_file(Path(names).expanduser())
    if names is not None and len(set(names)) < max(1, len(names)):
        raise UserError("--class_names must be at least one name, and none of them twice.")
    if dataset.startswith("hub:"):
        hub = dataset[4:]
        data = load_hub(hub, image_column, objects_column, bbox_format, names, with_masks)
    else:
        data = source_called(dataset, SOURCES)(
            data_dir=data_dir,
            limit_train=limit_train,
            limit_val=limit_val,
            seed=seed,
            image_size=image_size,
            class_names=names,
            with_masks=with_masks,
        )
    train, val = spread(data.train, limit_train), spread(data.val, limit_val)
    notes = dropped_boxes_note("train", train) + dropped_boxes_note("val", val)
    if not any(row["category"] for row in train["objects"]):
        masks = " with a mask" if with_masks else ""
        raise UserError(
            f"No training picture of {data_dir or dataset} has a usable object{masks}: check the "
            "annotations."
        )
    return replace(data, train=train, val=val, notes=data.notes + notes, with_masks=with_masks)


class DetectionDataset(Dataset):
    """Samples of a split, decoded and transformed; a sample's random state is its own.

    Args:
        rows: ``data.train`` or ``data.val``.
        data: where the rows come from.
        transform: of data/detection/transforms.py, random from torch's generator alone. With an
            ``EvalTransform`` the samples carry the truth in the original picture.
        seed: the run's seed.
        with_masks: samples hold masks; the data must have been loaded with them.

    Raises:
        UserError: masks are needed, but the data have none.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        data: DetectionData,
        transform: Callable[..., Sample] | None = None,
        seed: int = 0,
        with_masks: bool = False,
    ) -> None:
        self.rows = rows
        self.data = data
        self.transform = transform
        self.seed = seed
        self.with_masks = with_masks
        self._epoch, self._places = -1, np.empty(0, dtype=np.int64)
        self.reads_masks = with_masks or getattr(transform, "needs_masks", False)
        if self.reads_masks and not data.with_masks:
            raise UserError(
                "Masks are needed, for the model or for --copy_paste, but the data were loaded "
                "without: load them with masks."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """The sample of a key ``(epoch, index)``; a bare index is epoch 0.

        Returns:
            {"image": uint8 (3, H, W), "boxes": float32 (N, 4) x0 y0 x1 y1 in its pixels,
            "labels": int64 (N,), "masks": uint8 (N, H, W) if asked for, "index": int}; crowds are
            no targets. For evaluation also "truth" as ``read`` returns it, in pixels of the
            original picture, and what ``to_original`` needs: "size", "scale" and "offset".

        Raises:
            SampleError: the sample, or one that is mixed in, can't be used; the message names the
                file.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, truth = self.read(index)
        sample = _targets(image, truth)
        if self.transform is not None:
            # Forked, so that without workers the main process's own random state stays untouched.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
                sample = self.transform(sample, self._position(epoch, index), self._another)
        if not self.with_masks:
            sample.pop("masks", None)
        plain = {name: value.as_subclass(torch.Tensor) for name, value in sample.items()}
        if isinstance(self.transform, EvalTransform):
            plain["truth"] = truth
        return plain | {"index": index}

    def _position(self, epoch: int, index: int) -> int:
        """Where in the stream of samples an epoch visits a sample."""
        if epoch != self._epoch:
            self._epoch, self._places = epoch, np.argsort(epoch_order(len(self), self.seed, epoch))
        return epoch * len(self) + int(self._places[index])

    def _another(self) -> Sample:
        return _targets(*self.read(int(torch.randint(len(self), ()))))

    def read(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """A picture and its objects as they are stored.

        Returns:
            Image uint8 (3, H, W), and {"boxes": float64 (N, 4) x y width height in pixels,
            "labels": int64 (N,), "iscrowd": int64 (N,), "area": float64 (N,), "image_id": int,
            and with masks "rles": COCO's compressed run lengths of each}.

        Raises:
            SampleError: the picture can't be decoded, or isn't as large as its annotation says.
        """
        row = self.rows[index]
        name = name_of(row, index)
        image = read_image(row["image"], name)
        size = (row["height"], row["width"])
        if tuple(image.shape[1:]) != size:
            raise SampleError(
                f"{name} is {image.shape[2]}x{image.shape[1]} pixels but its annotation is of "
                f"{size[1]}x{size[0]}: correct the annotation, or restore the picture."
            )
        objects = row["objects"]
        truth = {
            "boxes": torch.tensor(objects["bbox"], dtype=torch.float64).reshape(-1, 4),
            "labels": torch.tensor(objects["category"], dtype=torch.int64),
            "iscrowd": torch.tensor(objects["iscrowd"], dtype=torch.int64),
            "area": torch.tensor(objects["area"], dtype=torch.float64),
            "image_id": row["image_id"],
        }
        if self.reads_masks:
            truth["rles"] = [instance_masks.to_rle(text, size) for text in objects["outline"]]
        return image, truth

    def name(self, index: int) -> str:
        """The picture's file, or where there is none the sample's number."""
        return name_of(self.rows[index], index)


def _targets(image: torch.Tensor, truth: dict[str, Any]) -> Sample:
    """A picture and what is to be found in it, as the transforms take it."""
    size = tuple(image.shape[1:])
    keep = truth["iscrowd"] == 0
    x, y, width, height = truth["boxes"][keep].unbind(1)
    corners = torch.stack([x, y, x + width, y + height], dim=1).float()
    sample = {
        "image": tv_tensors.Image(image),
        "boxes": boxes_like(corners, size),
        "labels": truth["labels"][keep],
    }
    if "rles" in truth:
        rles = [rle for rle, kept in zip(truth["rles"], keep.tolist(), strict=True) if kept]
        sample["masks"] = tv_tensors.Mask(instance_masks.decode(rles, size))
    return sample
