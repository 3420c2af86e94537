"""From a video to its class: what evaluation, figures and prediction share."""

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.pixels import PixelScaling
from engine.inference import Inference
from models.pretrained import pixel_scaling
from models.video import build_video_model
from tasks.classification.inference import ClassificationResult
from tasks.video.clips import ClipOptions
from tasks.video.dataset import read_views
from tasks.video.decoding.base import Video
from tasks.video.transforms import cut_windows


class VideoInference(Inference):
    """Video classification without its data."""

    task = "video"
    media = "video"
    saved = (
        "model",
        "clip_frames",
        "frame_stride",
        "fps",
        "crop_size",
        "eval_short_side",
        "eval_clips",
        "eval_crops",
        "hflip",
        "short_side",
        "crop_area",
    )

    def usual_scaling(self) -> PixelScaling:
        """That with which the model was trained where it was published."""
        return pixel_scaling(self.options.model)

    def build_model(self, weights: str = "none") -> nn.Module:
        """The network; every one maps clips (B, 3, T, H, W) to logits (B, K)."""
        return build_video_model(
            self.options.model,
            len(self.classes),
            weights=weights,
            clip_size=(self.options.clip_frames, *self.options.crop_size),
        )

    @cached_property
    def clip(self) -> ClipOptions:
        """Length, spacing and number of the clips."""
        return ClipOptions.of(self.options)

    @cached_property
    def windows(self) -> Any:
        """Cuts the windows (N, T, 3, h, w) from a resized clip (T, 3, H, W)."""
        size, count = tuple(self.options.crop_size), self.options.eval_crops
        return partial(cut_windows, crop_size=size, count=count)

    def prepare(self, media: Video) -> dict[str, Any]:
        """{"video": uint8 (clips x windows, T, 3, H, W)}."""
        return {"video": self.views(media, self.clip.numbers(media.times))}

    def views(self, video: Video, clips: list[np.ndarray]) -> Tensor:
        """Clips of an open video in their windows; see ``dataset.read_views``."""
        return read_views(video.read, clips, self.options.eval_short_side, self.windows)

    def arranged(self, pixels: Tensor) -> Tensor:
        """uint8 (..., T, 3, H, W) → (B, 3, T, H, W); views follow each other."""
        return pixels.flatten(0, -5).transpose(1, 2)

    def probabilities(self, model: nn.Module, clips: Tensor, videos: int, at_once: int) -> Tensor:
        """(videos, views, K) of clips that ``scaled`` has made, so many of them at a time."""
        logits = torch.cat([model(part) for part in clips.split(at_once)]).to(self.dtype)
        return logits.softmax(1).unflatten(0, (videos, -1))

    def results(
        self, model: nn.Module, pixels: Tensor, samples: list[dict[str, Any]]
    ) -> list[ClassificationResult]:
        """The class of every video of a batch, its views averaged."""
        clips = self.of_bytes(model, pixels)
        rows = self.probabilities(model, clips, len(samples), len(samples)).mean(1).cpu()
        return [ClassificationResult(row, self.classes) for row in rows]
