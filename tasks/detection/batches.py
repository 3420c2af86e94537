"""Batches of detection samples: images of one size, and objects padded to one number."""

from typing import Any

import torch

from data.samples import stack_images

# The numbers of boxes per image, so that few shapes of batches occur: 8, 12, 16, 24, 32, 48, ...
FEWEST = 8
PADDING = -1  # label of a box that only fills a batch


def collate_train(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples of one size; their objects are padded to one number.

    Returns:
        {"image": uint8 (B, 3, H, W), "boxes": float32 (B, M, 4), "labels": int64 (B, M) with -1
        for padding, "masks": uint8 (B, M, H, W) if the samples have them}; M is the largest
        number of objects, rounded up to a multiple of 8 and at least 8.
    """
    slots = slots_for(max(len(sample["labels"]) for sample in samples))
    batch = {
        "image": stack_images([sample["image"] for sample in samples]),
        "boxes": _padded([sample["boxes"] for sample in samples], slots, 0),
        "labels": _padded([sample["labels"] for sample in samples], slots, PADDING),
    }
    if "masks" in samples[0]:
        batch["masks"] = _padded([sample["masks"] for sample in samples], slots, 0)
    return batch


def slots_for(objects: int) -> int:
    """The smallest of 8, 12, 16, 24, 32, 48, ... that is at least ``objects``."""
    slots = FEWEST
    while slots < objects:
        slots = slots * 3 // 2 if slots & (slots - 1) == 0 else slots * 4 // 3
    return slots


def _padded(rows: list[torch.Tensor], slots: int, value: int) -> torch.Tensor:
    padded = rows[0].new_full((len(rows), slots, *rows[0].shape[1:]), value)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def collate_eval(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack evaluation samples.

    Returns:
        What ``collate_train`` returns, with "truth", a list of dictionaries, and for each image
        "index" int64 (B,), "size" int64 (B, 2) height and width, "scale" and "offset" float64
        (B, 2) along x and y; maybe "picture", a list of the original images.
    """
    batch = collate_train(samples)
    batch["truth"] = [sample["truth"] for sample in samples]
    batch["index"] = torch.tensor([sample["index"] for sample in samples])
    for name in ("size", "scale", "offset"):
        batch[name] = torch.stack([sample[name] for sample in samples])
    if "picture" in samples[0]:
        batch["picture"] = [sample["picture"] for sample in samples]
    return batch
