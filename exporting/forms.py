"""What an exported file computes: a network with plain tensors going in and coming out."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from engine.inference import Inference
from errors import UserError
from inference.onnx_network import NOTHING
from models.yolo import Yolo, cells, decode


class Plain(nn.Module):
    """A network of one output.

    Args:
        network: segments or classifies.
        inference: scales pixels, where ``bytes_in``.
        bytes_in: whether it takes uint8 images.
    """

    def __init__(self, network: nn.Module, inference: Inference, bytes_in: bool) -> None:
        super().__init__()
        self.network, self.bytes_in = network, bytes_in
        scaling = inference.scaling
        shape = (1, 3, *(1,) * (3 if inference.media == "video" else 2))
        factor = 255.0
        self.register_buffer("mean", (factor * torch.tensor(scaling.mean)).view(shape))
        self.register_buffer("std", (factor * torch.tensor(scaling.std)).view(shape))

    def scaled(self, images: Tensor) -> Tensor:
        """What the network takes."""
        return (images.to(self.mean.dtype) - self.mean) / self.std if self.bytes_in else images

    def forward(self, images: Tensor) -> Any:
        """(B, 3, [T,] H, W) → logits (B, K, [H, W])."""
        logits = self.network(self.scaled(images))
        return logits["out"] if isinstance(logits, dict) else logits


class Candidates(Plain):
    """A yolo without non-maximum suppression."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → boxes (B, A, 4) as corners, and scores (B, A, K)."""
        return candidates(self.network, self.scaled(images))


class YoloObjects(Plain):
    """A yolo with non-maximum suppression, for one image: a fixed number of places for objects."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, H, W) → boxes (1, M, 4), scores (1, M), labels (1, M), -1 where nothing is."""
        boxes, scores = candidates(self.network, self.scaled(images))
        return best_objects(
            boxes[0],
            scores[0],
            (images.shape[-2], images.shape[-1]),
            self.network.score_thresh,
            self.network.detections_per_img,
        )


class DetectorObjects(Plain):
    """Another detector with its own suppression, for one image: as many objects as are found."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, H, W) → boxes (N, 4), scores (N,), labels (N,)."""
        (found,) = self.network(self.scaled(images))
        return found["boxes"], found["scores"], found["labels"]


def candidates(network: Yolo, images: Tensor) -> tuple[Tensor, Tensor]:
    """Every box (B, A, 4) of a yolo and its scores (B, A, K), as ``Yolo.forward`` computes them."""
    logits, codes, sizes, padded = network.raw(images)
    centers, strides = cells(sizes, padded, codes)
    return decode(codes, centers, strides), logits.sigmoid()


def best_objects(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    threshold: float,
    most: int,
    iou: float = 0.6,
    looked_at: int = 1000,
) -> tuple[Tensor, Tensor, Tensor]:
    """``models.yolo.select_detections`` in operations whose results have fixed shapes.

    Args:
        boxes: (A, 4).
        scores: (A, K).
        size: (height, width), which boxes are clipped to.
        threshold: objects must score more.
        most: objects.
        iou: boxes of one class that overlap more are the same object.
        looked_at: the best (box, class) pairs that are candidates.
    """
    classes = scores.shape[1]
    best, index = scores.flatten().topk(min(looked_at, scores.numel()))
    found = clip_boxes_to_image(boxes[index // classes], size)
    labels = index % classes
    # Boxes of different classes are moved apart, so that they don't overlap.
    apart = found + (labels * (max(size) + 1)).to(found)[:, None]
    kept = torch.zeros_like(best).index_fill(0, nms(apart, best, iou), 1.0)
    # What scores too little stands behind everything else, and suppresses nothing before it.
    ranked = torch.where((kept > 0) & (best > threshold), best, torch.zeros_like(best))
    top, place = ranked.topk(min(most, len(ranked)))
    nothing = top <= 0
    labels = labels[place].masked_fill(nothing, NOTHING)
    return found[place].masked_fill(nothing[:, None], 0)[None], top[None], labels[None]


def form_of(inference: Inference, network: nn.Module, bytes_in: bool, with_nms: bool) -> Plain:
    """The form in which a network is exported.

    Raises:
        UserError: the detector has no form without suppression.
    """
    if inference.task != "detection":
        return Plain(network, inference, bytes_in)
    if isinstance(network, Yolo):
        return (YoloObjects if with_nms else Candidates)(network, inference, bytes_in)
    if with_nms:
        if hasattr(getattr(network, "roi_heads", None), "mask_roi_pool") and (
            network.roi_heads.mask_roi_pool is not None
        ):
            raise UserError(
                f"{inference.options.model} can't be exported: the masks of roi_heads.mask_head "
                "have no form in the file; export a detector of boxes."
            )
        return DetectorObjects(network, inference, bytes_in)
    raise UserError(
        f"{inference.options.model} can't be exported without non-maximum suppression, which is "
        "part of its layers (roi_heads or postprocess_detections): leave out --no_nms, or export "
        "a yolo."
    )


def output_names(form: Plain) -> list[str]:
    """Names of what comes out."""
    if isinstance(form, Candidates):
        return ["boxes", "scores"]
    return ["logits"] if type(form) is Plain else ["boxes", "scores", "labels"]
