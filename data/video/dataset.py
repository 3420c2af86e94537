"""Video data: one schema from every source, a Dataset of clips over it, and its batches."""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate
from torchvision import tv_tensors

from data.decode import SampleError, cell_name
from data.sources import source_called, spread
from data.stream import sample_seed
from data.video.base import Video
from data.video.clips import ClipOptions, clip_numbers, is_short, segment
from data.video.decode import torchcodec_decoder
from data.video.sources import SOURCES, VideoData, load_hub
from data.video.transforms import EvalTransform, TrainTransform

__all__ = [
    "ClipOptions",
    "VideoData",
    "VideoDataset",
    "collate_eval",
    "collate_train",
    "load_video",
]

Row = dict[str, Any]  # video, label, start, end


def load_video(
    dataset: str = "synthetic",
    data_dir: str | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    seed: int = 0,
    split: int = 1,
    video_column: str = "video",
    label_column: str = "label",
    video_size: tuple[int, int] = (64, 64),
    video_frames: int = 16,
) -> VideoData:
    """Find a data set's videos and their classes; nothing is decoded yet.

    Args:
        dataset: synthetic, folder, ucf101, kinetics or hub:<id or local path>.
        data_dir: the data set's folder, for all but synthetic and hub.
        limit_train: keep only so many training videos, evenly spaced over the data set.
        limit_val: the same for validation.
        seed: synthetic: seed of the videos.
        split: ucf101: which of the three official splits.
        video_column: hub: name of the column of videos, or of their paths.
        label_column: hub: name of the column of classes.
        video_size: synthetic: (height, width) of the videos.
        video_frames: synthetic: frames per video.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    if dataset.startswith("hub:"):
        data = load_hub(dataset[4:], video_column, label_column)
    else:
        data = source_called(dataset, SOURCES)(
            data_dir=data_dir,
            seed=seed,
            split=split,
            video_size=video_size,
            video_frames=video_frames,
        )
    return data.with_rows(spread(data.train, limit_train), spread(data.val, limit_val))


class VideoDataset(Dataset):
    """Clips of a split's videos, decoded and transformed; a sample's random state is its own.

    Args:
        rows: ``data.train`` or ``data.val``.
        data: where the rows come from.
        clip: length, spacing and number of the clips.
        transform: says to which size to resize, and cuts windows; see ``data.video.transforms``.
        seed: the run's seed.
        train: one clip at a random place, or the clips of evaluation.

    Raises:
        UserError: ``clip`` asks for a decoder that can't be loaded.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        data: VideoData,
        clip: ClipOptions,
        transform: TrainTransform | EvalTransform,
        seed: int = 0,
        train: bool = True,
    ) -> None:
        if clip.decoder == "torchcodec":
            torchcodec_decoder()  # now, rather than at the first sample
        self.rows = rows
        self.data = data
        self.clip = clip
        self.transform = transform
        self.seed = seed
        self.train = train

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        """The sample of a key ``(epoch, index)``; a bare index is epoch 0.

        Returns:
            {"video": uint8, "label": int, "index": int, "looped": bool}; the video is (T, 3, H, W)
            in training and (clips x windows, T, 3, H, W) in evaluation, and looped if it is too
            short for a clip, so that frames repeat.

        Raises:
            SampleError: the clip can't be decoded completely; the message names the file.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.rows[index]
        # Forked, so that without workers the main process's own random state stays untouched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            with self._open(row, index) as video:
                first, stop = _segment(row, index, video)
                times = video.times[first:stop]
                places = [torch.rand(()).item()] if self.train else self.clip.positions()
                numbers = [first + clip_numbers(times, self.clip, place) for place in places]
                # In one go: the clips of evaluation share frames, or the way to them.
                frames = video.read(np.concatenate(numbers), self.transform.draw_short_side())
            clips = frames.split(self.clip.frames)
            clips = [self.transform(tv_tensors.Video(clip)) for clip in clips]
        return {
            "video": clips[0] if self.train else torch.cat(clips),
            "label": row["label"],
            "index": index,
            "looped": is_short(times, self.clip),
        }

    def open(self, index: int) -> Video:
        """The whole video of a sample, to be closed by the caller.

        Raises:
            SampleError: it is missing, or no video; the message names the file.
        """
        return self._open(self.rows[index], index)

    def _open(self, row: Row, index: int) -> Video:
        return self.data.open(row["video"], _name(row, index), self.clip.decoder)

    def segment(self, video: Video, index: int) -> tuple[int, int]:
        """First frame of a sample within its video, and the one after its last.

        Raises:
            SampleError: there is no frame between its start and end.
        """
        return _segment(self.rows[index], index, video)

    def name(self, index: int) -> str:
        """The video's file, or where there is none the sample's number."""
        return _name(self.rows[index], index)


def _name(row: Row, index: int) -> str:
    return cell_name(row["video"], f"video of sample {index}")


def _segment(row: Row, index: int, video: Video) -> tuple[int, int]:
    first, stop = segment(video.times, row["start"], row["end"])
    if first == stop:
        raise SampleError(
            f"{_name(row, index)} has no frame between {row['start']} and {row['end']} seconds, "
            f"since it has {len(video.times)} frames: correct its start and end, or remove it."
        )
    return first, stop


def collate_train(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack clips.

    Returns:
        {"video": uint8 (B, T, 3, H, W), "label": int64 (B,), "index": int64 (B,), "looped": bool
        (B,)}.
    """
    return default_collate(samples)  # in a worker it stacks right into shared memory


# In evaluation "video" is (B, clips x windows, T, 3, H, W): windows are of one size there too.
collate_eval: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]] = collate_train
