"""Videos: frame by frame for a task of pictures, clips slid over them for a task of videos."""

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from errors import UserError
from inference.clips import as_video
from inference.curves import Curve, slid
from inference.inputs import Input
from inference.options import PredictOptions
from inference.task_output import TaskOutput
from inference.trained import Trained
from tasks.video.clips import clip_numbers

CODECS = ("libx264", "mpeg4")  # the first that PyAV's FFmpeg has
CAMERAS = (("v4l2", "/dev/video{}"), ("avfoundation", "{}"), ("dshow", "video={}"))


def predict_slid(model: Trained, video: Any, every: float, batch_size: int) -> Curve:
    """The classes of a video over its time.

    Args:
        model: a video classifier.
        video: open.
        every: seconds between the beginnings of two clips.
        batch_size: clips at a time, which bounds the memory.
    """
    inference = model.inference
    times = np.asarray(video.times)
    starts, rows, span = slid(times, every), [], 0.0
    for first in range(0, len(starts), batch_size):
        part = starts[first : first + batch_size]
        clips = [start + clip_numbers(times[start:], inference.clip, 0.0) for start in part]
        views = inference.views(video, clips)
        result = model.of_batch(
            views.unflatten(0, (len(part), -1)), [{"number": start} for start in part]
        )
        rows += [each.probabilities for each in result]
        span = max(span, *(float(times[clip.max()] - times[clip.min()]) for clip in clips))
    return Curve(times[starts] - times[0], span, torch.stack(rows), model.classes)


def predict_film(
    model: Trained, task: TaskOutput, each: Input, options: PredictOptions
) -> dict[str, Any]:
    """Predict on every frame of a video or camera: an annotated video, and a line per frame.

    Returns:
        What the table says of the video: the mean of what can be averaged, and its frames.

    Raises:
        UserError: it can't be read.
    """
    frames = _camera(each) if each.kind == "camera" else _film(each)
    if options.max_frames:
        frames = itertools.islice(frames, options.max_frames)
    lines, writer, count = task.file("frames", each, ".jsonl"), None, 0
    try:
        with open(lines, "w") as file:
            while batch := list(itertools.islice(frames, options.batch_size)):
                pictures = [picture for picture, _, _ in batch]
                results = _predict(model, pictures, options.batch_size)
                for (picture, time, rate), result in zip(batch, results, strict=True):
                    file.write(json.dumps({"seconds": time, **task.record(result)}) + "\n")
                    count += 1
                    if "pictures" in task.saved:
                        drawn = task.draw_frame(picture, result)
                        if writer is None:
                            path = task.file("pictures", each, ".mp4")
                            writer = FilmWriter(path, rate, drawn)
                        writer.write(drawn)
    except KeyboardInterrupt:  # the usual end of a camera
        if each.kind != "camera":
            raise
    finally:
        if writer:
            writer.close()
    if not count:
        raise UserError(f"{each.name} has no frames: replace it or remove it.")
    with open(lines) as file:
        return task.together(map(json.loads, file), count) | {"frames": count}


def _predict(model: Trained, pictures: list[Tensor], batch_size: int) -> list[Any]:
    """Results of frames, one by one where several take more memory than there is."""
    try:
        return model.predict(pictures, batch_size)
    except torch.OutOfMemoryError:
        if batch_size == 1:
            raise
        torch.cuda.empty_cache()
    return model.predict(pictures, 1)


def _film(each: Input) -> Iterator[tuple[Tensor, float, float]]:
    """(picture uint8 (3, H, W), seconds, frames per second) of every frame."""
    with as_video(each.path) as video:
        times = video.times
        span = float(times[-1] - times[0])
        rate = (len(times) - 1) / span if span > 0 else 25.0
        for time, frame in zip(times, video.frames(np.arange(len(times))), strict=True):
            yield frame, float(time - times[0]), rate


def _camera(each: Input) -> Iterator[tuple[Tensor, float, float]]:
    """The same of a camera, until it ends or Ctrl-C comes."""
    problems = []
    for driver, name in CAMERAS:
        try:
            container = av.open(name.format(each.path), format=driver)
        except (av.FFmpegError, OSError, ValueError) as error:
            problems.append(f"{driver}: {getattr(error, 'strerror', None) or error}")
            continue
        with container:
            rate = float(container.streams.video[0].average_rate or 25)
            for frame in container.decode(video=0):
                picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
                yield picture, float(frame.time or 0), rate
        return
    raise UserError(f"Camera {each.path} can't be opened ({'; '.join(problems)}): check --input.")


class FilmWriter:
    """A video file that grows by one frame at a time; its frames have the size of the first.

    Args:
        path: of the file.
        rate: frames per second.
        first: a frame, uint8 (3, H, W), for the size.
    """

    def __init__(self, path: Path, rate: float, first: Tensor) -> None:
        self.container = av.open(str(path), "w")
        codec = next(name for name in CODECS if name in av.codecs_available)
        self.stream = self.container.add_stream(
            codec, rate=Fraction(rate).limit_denominator(1000) or Fraction(25)
        )
        # Video codecs halve the colours' resolution, so sides are even.
        self.size = [length - length % 2 or 2 for length in first.shape[1:]]
        self.stream.height, self.stream.width = self.size
        self.stream.pix_fmt = "yuv420p"
        if codec == "mpeg4":
            self.stream.bit_rate = 8_000_000

    def write(self, picture: Tensor) -> None:
        """Append a frame."""
        picture = picture.cpu()
        if any(abs(a - b) > 1 for a, b in zip(picture.shape[1:], self.size, strict=True)):
            picture = F.resize(picture, self.size, antialias=True)
        height, width = self.size
        canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
        part = picture[:, :height, :width]
        canvas[:, : part.shape[1], : part.shape[2]] = part
        frame = av.VideoFrame.from_ndarray(canvas.permute(1, 2, 0).contiguous().numpy(), "rgb24")
        for packet in self.stream.encode(frame):
            self.container.mux(packet)

    def close(self) -> None:
        """Write what the encoder holds back, and the end of the file."""
        for packet in self.stream.encode():
            self.container.mux(packet)
        self.container.close()
