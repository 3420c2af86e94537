"""Test-time augmentation: a network's answers about changed copies of its input, as one answer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from errors import UserError
from models.detector_interface import Detections

FLIP = "flip"
SAME_OBJECT = 0.6  # IoU of boxes of one class, found in different copies


class Averaged(nn.Module):
    """A network that also looks at mirrored and rescaled copies of its input.

    Probabilities are averaged; of objects that are found in several copies the surest stays.

    Args:
        network: of any task.
        task: its name.
        flip: whether every copy is looked at mirrored, too.
        scales: factors of the copies' sides, 1 for the input itself.
        most: objects of an image.

    Attributes:
        bytes_in: as the network's.
    """

    def __init__(
        self, network: nn.Module, task: str, flip: bool, scales: Sequence[float], most: int
    ) -> None:
        super().__init__()
        self.network, self.task, self.most = network, task, most
        self.copies = [
            (scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]
        ]
        self.bytes_in = getattr(network, "bytes_in", False)

    def forward(self, images: Tensor) -> Any:
        """What the network returns: {"out": logits}, logits, or a list of Detections."""
        found = [self._of_copy(images, *copy) for copy in self.copies]
        if self.task == "detection":
            return [self._joined(list(each)) for each in zip(*found, strict=True)]
        # The logarithm of a mean of probabilities is what softmax turns into that mean.
        mean = torch.logsumexp(torch.stack(found), 0) - math.log(len(found))
        return {"out": mean} if self.task == "segmentation" else mean

    def _of_copy(self, images: Tensor, scale: float, mirrored: bool) -> Any:
        size = images.shape[-2:]
        copies = images
        if scale != 1:
            wanted = [max(1, round(length * scale)) for length in size]
            copies = _resized(images, wanted)
        copies = copies.flip(-1) if mirrored else copies
        found = self.network(copies)
        if self.task == "detection":
            return [_back(each, copies.shape[-2:], size, mirrored) for each in found]
        logits = found["out"] if isinstance(found, dict) else found
        if self.task == "segmentation":
            logits = logits.flip(-1) if mirrored else logits
            if logits.shape[-2:] != size:
                logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits.float().log_softmax(1)

    def _joined(self, found: list[Detections]) -> Detections:
        boxes, scores, labels = (
            torch.cat([each[name] for each in found]) for name in ("boxes", "scores", "labels")
        )
        kept = batched_nms(boxes.float(), scores.float(), labels, SAME_OBJECT)[: self.most]
        return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def _resized(images: Tensor, size: list[int]) -> Tensor:
    """Images (B, 3, [T,] H, W) of another size."""
    frames = images.flatten(0, -4) if images.ndim == 4 else images.transpose(1, 2).flatten(0, 1)
    resized = F.interpolate(
        frames.float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    resized = (resized if images.is_floating_point() else resized.round()).to(images.dtype)
    if images.ndim == 4:
        return resized
    return resized.unflatten(0, (images.shape[0], images.shape[2])).transpose(1, 2)


def _back(
    found: Detections, copy: tuple[int, int], size: tuple[int, int], mirrored: bool
) -> Detections:
    """Objects of a copy in pixels of the input."""
    boxes = found["boxes"]
    if mirrored:
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack([copy[1] - x1, y0, copy[1] - x0, y1], 1)
    factor = boxes.new_tensor([size[1] / copy[1], size[0] / copy[0]] * 2)
    return {**found, "boxes": boxes * factor}


def averaged(network: nn.Module, about: Any, names: Sequence[str]) -> nn.Module:
    """A network with the test-time augmentation that ``--tta`` names.

    Args:
        network: of ``about``'s task.
        about: says how it was trained.
        names: "flip", and factors of sides as text.

    Raises:
        UserError: a name is neither; or the model can't, or wasn't trained for it.
    """
    if not names:
        return network
    scales = {1.0}
    for name in names:
        try:
            scales |= set() if name == FLIP else {float(name)}
        except ValueError:
            raise UserError(
                f"--tta takes flip and factors such as 0.75, and not {name!r}."
            ) from None
    if min(scales) <= 0.1 or max(scales) > 4:
        raise UserError("The factors of --tta must be from 0.1 to 4.")
    if FLIP in names and not about.options.get("hflip"):
        raise UserError(
            "These weights were trained without mirrored pictures (--hflip 0), so --tta flip would "
            "show them what they don't know: leave it out."
        )
    if str(about.options.get("model", "")).startswith("maskrcnn"):
        raise UserError("Objects with masks are not joined over copies: leave out --tta.")
    most = about.options.get("max_detections", 100)
    return Averaged(network, about.task, FLIP in names, sorted(scales), most)
