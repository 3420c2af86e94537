"""Exact frames of a video file through PyAV, without decoding what comes before the clip.

Frames are numbered in the order in which they are shown. To decode some of them, the file is
searched for the key frame before the first, and the time stamps tell which frames follow.

If one frame of a clip can't be decoded, an error names the file; nothing is patched up. Two kinds
of damage can't be detected: pixels that the decoder conceals silently (MPEG-4 Part 2 does), and a
missing end where no header says how many frames there were (Matroska, MPEG streams).
"""

import io
from collections.abc import Iterator

import av
import numpy as np
import torch
from av.stream import Disposition

from data.decode import SampleError
from tasks.video.decoding.base import Video, broken

# How many seconds before a frame its key frame is looked for, in this order; if it isn't found, the
# file is decoded from its beginning.
STEPS_BACK = (0.0, 1.0, 5.0)
# Headers also count frames that no decoder returns, such as an empty last one. Up to this many
# frames missing at the end are replaced by the last one; more mean that the file was cut off.
TAIL = 3
# Where more frames than this lie between two wanted ones, searching the file costs less than
# decoding them: the key frame before the second may lie this far back.
FAR = 100
PYAV = int(av.__version__.partition(".")[0])
# Metadata may be in any encoding. Nobody reads it, but PyAV before 19 decodes it.
UNREAD_METADATA = {"metadata_errors": "ignore"} if PYAV < 19 else {}
# The threads with which PyAV 19 converts a frame don't live on in a forked process, which would
# wait for them for ever; and a loader's workers are the parallelism.
ONE_THREAD = {"threads": 1} if PYAV >= 18 else {}


def playing_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The video that a player shows: neither a cover picture nor a stream beside it.

    Of several it is FFmpeg's choice: the default one, the one with more frames, the better one.
    """
    found = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    longest = max((stream.frames for stream in found), default=0)
    # Not every tool marks a cover; a header without numbers of frames says 0.
    videos = [stream for stream in found if stream.frames != 1 or longest == 1]
    best = container.streams.best("video")
    same = [stream for stream in videos if best is not None and stream.index == best.index]
    return next(iter(same or videos), None)


class PyavVideo(Video):
    """A video file, decoded in one thread: a loader's workers are the parallelism.

    Args:
        source: path or contents of the file.
        name: what messages call it.

    Raises:
        SampleError: the file is missing or is not a video; the message names it.
    """

    def __init__(self, source: str | io.BytesIO, name: str) -> None:
        self.source, self.name = source, name
        self.container = None
        self._open()
        try:
            self._number_frames()
        except av.FFmpegError as error:
            self.close()
            raise broken(name, error) from None
        except SampleError:
            self.close()
            raise

    def _open(self) -> None:
        self.close()
        if isinstance(self.source, io.BytesIO):
            self.source.seek(0)
        try:
            self.container = av.open(self.source, **UNREAD_METADATA)
        except FileNotFoundError:
            raise SampleError(
                f"{self.name} is not there: restore it, or remove it from the data set."
            ) from None
        except (av.FFmpegError, OSError, ValueError) as error:
            raise broken(self.name, error) from None
        self.fresh = True
        self.stream = playing_stream(self.container)
        if self.stream is None:
            self.close()
            raise SampleError(f"{self.name} holds no video: replace it or remove it.")
        self.stream.codec_context.thread_count = 1

    def _number_frames(self) -> None:
        """Find every frame's time stamp, and whether frames can be found by their stamps.

        Where a container stores the number of frames and one rate for all of them, and both agree
        with the stored duration, they are trusted. Otherwise all packets are read, which costs
        reading the file but no decoding. AVI has no time stamps: FFmpeg numbers its packets, whose
        order differs from that of the frames if there are B-frames. MPEG program streams have a
        stamp only now and then, from which FFmpeg guesses wrong ones after a seek. In such files,
        and in others whose packets lack stamps or share them, frames are counted from the
        beginning of the file.
        """
        stream = self.stream
        rate, tick = stream.average_rate or 25, stream.time_base
        self.kind = self.container.format.name
        counted = self.kind == "mpeg" or (self.kind == "avi" and stream.codec_context.has_b_frames)
        if self._header_is_consistent():
            stamps = (stream.start_time or 0) + np.arange(stream.frames) / float(rate * tick)
        else:
            packets = self._packet_stamps()
            counted |= None in packets or len(set(packets)) < len(packets)
            evenly = np.arange(len(packets)) / float(rate * tick)
            stamps = evenly if counted else np.sort(np.array(packets, dtype=np.float64))
        self.stamps, self.seekable = stamps, not counted
        self.times = stamps * float(tick)

    def _packet_stamps(self) -> list[int | None]:
        """The time stamp of every packet that becomes a frame."""
        packets = [
            (packet.pts, packet.is_keyframe, packet.is_discard)
            for packet in self.container.demux(self.stream)
            if packet.size
        ]
        self.fresh = False
        if self.stream.frames - len(packets) > TAIL:
            raise broken(
                self.name, f"it has {len(packets)} of {self.stream.frames} frames, as if cut off"
            )
        # Decoders return neither what comes before the first key frame nor what an editor cut away
        # without encoding the rest again.
        first = next((i for i, (_, is_key, _) in enumerate(packets) if is_key), 0)
        stamps = [stamp for stamp, _, discarded in packets[first:] if not discarded]
        if not stamps:
            raise broken(self.name, "it has no frames")
        return stamps

    def _header_is_consistent(self) -> bool:
        stream = self.stream
        if not (stream.frames and stream.duration and stream.average_rate):
            return False
        if stream.frames > self.container.size:
            return False  # more frames than bytes, which a header may claim up to 2^31
        if stream.average_rate != stream.base_rate:
            return False  # the spacing varies
        expected = float(stream.duration * stream.time_base * stream.average_rate)
        return abs(stream.frames - expected) < 0.5

    def frames(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        """Decode from the key frame before the first of these frames to the last of them.

        Where they lie far apart, each stretch is decoded by itself.
        """
        gaps = np.flatnonzero(np.diff(numbers) > FAR) if self.seekable else []
        for stretch in np.split(numbers, np.add(gaps, 1).astype(int)):
            yield from self._stretch(stretch)

    def _stretch(self, numbers: np.ndarray) -> Iterator[torch.Tensor]:
        wanted = iter(numbers.tolist())
        number, last, shown = next(wanted), -1, None
        try:
            for found, frame in self._frames_from(number):
                # In place of a frame that the file leaves out, the one before it is still shown.
                while number is not None and number <= found:
                    yield self._pixels(frame if number == found or shown is None else shown)
                    number = next(wanted, None)
                if number is None:
                    return
                last, shown = found, frame
        except (av.FFmpegError, ValueError) as error:
            raise broken(self.name, error) from None
        if shown is None or numbers[-1] - last > TAIL:
            total = len(self.times)
            raise broken(self.name, f"it ends after {last + 1} of {total} frames")
        while number is not None:
            yield self._pixels(shown)
            number = next(wanted, None)

    def _frames_from(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbered frames, beginning at or before frame ``first``."""
        if self.seekable and first:
            for seconds in STEPS_BACK:
                target = self.stamps[first] - seconds / float(self.stream.time_base)
                if target <= self.stamps[0]:
                    break
                frames = self._frames_after_seek(int(target))
                found = next(frames, None)
                if found is not None and found[0] <= first:
                    yield found
                    yield from frames
                    return
        if not self.fresh:
            self._open()
        self.fresh = False
        for count, frame in enumerate(self.container.decode(self.stream)):
            yield (self._number(frame) if self.seekable else count), frame

    def _frames_after_seek(self, target: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames from a key frame on; those before it may lack what they were encoded from."""
        self.fresh = False
        try:
            self.container.seek(target, stream=self.stream)
        except av.FFmpegError:
            return
        key_frame_seen = False
        for frame in self.container.decode(self.stream):
            key_frame_seen |= frame.key_frame
            if key_frame_seen:
                yield self._number(frame), frame

    def _number(self, frame: av.VideoFrame) -> int:
        """The frame whose time stamp is nearest."""
        if frame.pts is None:
            raise ValueError("a frame has no time stamp")
        after = int(np.searchsorted(self.stamps, frame.pts))
        around = range(max(0, after - 1), min(len(self.stamps), after + 1))
        return min(around, key=lambda number: abs(self.stamps[number] - frame.pts))

    def _pixels(self, frame: av.VideoFrame) -> torch.Tensor:
        """A frame as RGB, upright as the file's rotation says: uint8 (3, H, W)."""
        if frame.is_corrupt:
            raise broken(self.name, f"the frame at {frame.time:.2f} seconds is damaged")
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24", **ONE_THREAD)).permute(2, 0, 1)
        turns = round(frame.rotation / 90) % 4
        return torch.rot90(pixels, turns, (1, 2)) if turns else pixels  # rot90 always copies

    def close(self) -> None:
        """Close the file and free the decoder's buffers."""
        if self.container is not None:
            self.container.close()
            self.container = None
