"""Which frames of a video make a clip."""

from dataclasses import dataclass

import numpy as np

from tasks.video.options import VideoOptions


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut from videos.

    Attributes:
        frames: frames per clip.
        stride: distance in the video between consecutive frames of a clip, where ``fps`` is None.
        fps: frames of the clip per second of the video, by the frames' time stamps, instead of a
            stride: videos of different frame rates then show motion at the same speed.
        eval_clips: clips per video in evaluation, evenly spaced over it.
    """

    frames: int
    stride: int = 1
    fps: float | None = None
    eval_clips: int = 1

    @classmethod
    def of(cls, options: VideoOptions) -> "ClipOptions":
        """How the options of the script cut clips."""
        return cls(
            frames=options.clip_frames,
            stride=options.frame_stride,
            fps=options.fps,
            eval_clips=options.eval_clips,
        )

    def positions(self) -> list[float]:
        """Where in the video the clips of an evaluation lie: 0 is its beginning, 1 its end."""
        if self.eval_clips == 1:
            return [0.5]
        return np.linspace(0, 1, self.eval_clips).tolist()

    def numbers(self, times: np.ndarray) -> list[np.ndarray]:
        """The frames of the clips of an evaluation; ``times`` as for ``clip_numbers``."""
        return [clip_numbers(times, self, place) for place in self.positions()]


def segment(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """The frames shown from ``start`` until before ``end``, in seconds from the first frame.

    Returns:
        The first frame and the one after the last; both are the same if there is none.
    """
    elapsed = times - times[0]
    first = 0 if start is None else int(np.searchsorted(elapsed, start - 1e-6))
    stop = len(times) if end is None else int(np.searchsorted(elapsed, end - 1e-6))
    return first, max(first, stop)


def clip_numbers(times: np.ndarray, options: ClipOptions, position: float) -> np.ndarray:
    """Frame numbers of a clip; a video that is too short starts again from its beginning.

    Args:
        times: seconds at which the video's (or segment's) frames are shown, ascending.
        options: length and spacing of the clip.
        position: from 0, the earliest clip, to 1, the latest.

    Returns:
        int64 (options.frames,) into ``times``.
    """
    steps = np.arange(options.frames)
    if options.fps is None:
        # Every start is equally likely for a position that is uniform in [0, 1).
        starts = max(0, len(times) - _span(options)) + 1
        first = min(int(position * starts), starts - 1)
        return (first + options.stride * steps) % len(times)
    duration = _duration(times)
    first = position * max(0.0, duration - options.frames / options.fps)
    wanted = (first + steps / options.fps) % duration
    # The frame that is on show at that time; the margin is for times rounded by the container.
    shown = np.searchsorted(times - times[0], wanted + 1e-4 * duration / len(times), side="right")
    return shown - 1


def is_short(times: np.ndarray, options: ClipOptions) -> bool:
    """Whether the video has too few frames, or seconds, for a clip, so that frames repeat."""
    if options.fps is None:
        return len(times) < _span(options)
    return _duration(times) < (options.frames - 1) / options.fps


def _span(options: ClipOptions) -> int:
    return (options.frames - 1) * options.stride + 1


def _duration(times: np.ndarray) -> float:
    """Seconds for which the frames are shown, the last one as long as the others on average."""
    if len(times) == 1:
        return 1.0
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)
