"""How much time seeking to a clip saves, compared with decoding the whole file, in one thread.

    python benchmarks/video_decoding.py                        on videos that it makes itself
    python benchmarks/video_decoding.py --folder ~/UCF-101     on the videos below a folder

Both ways read the same clips, alternating file by file, so that other work of the machine slows
both. The shorter side of the frames is resized to 128 pixels, as for training. The table has a row
for each kind of file; the ratio is the median over the clips, followed by the range of the middle
half. The last column counts the clips that were found by seeking; in files whose time stamps can't
be trusted, frames are counted from the beginning.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

from data.decode import SampleError
from tasks.video.clips import ClipOptions, clip_numbers
from tasks.video.decoding.open import open_video
from tasks.video.files import VIDEOS

SHORT_SIDE = 128


def by_seeking(path: Path, clip: ClipOptions, place: float) -> tuple[torch.Tensor, bool]:
    """A clip as training reads it, and whether it was found by seeking."""
    with open_video({"path": str(path), "bytes": None}, path.name) as video:
        frames = video.read(clip_numbers(video.times, clip, place), SHORT_SIDE)
        return frames, video.seekable


def by_decoding_all(path: Path, clip: ClipOptions, place: float) -> torch.Tensor:
    """The same clip, taken from all frames of the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = list(container.decode(stream))
        times = np.arange(len(frames)) / float(stream.average_rate)
    chosen = [frames[number] for number in clip_numbers(times, clip, place)]
    clip_frames = np.stack([frame.to_ndarray(format="rgb24") for frame in chosen])
    whole = torch.from_numpy(clip_frames).permute(0, 3, 1, 2)
    height, width = whole.shape[2:]
    factor = SHORT_SIDE / min(height, width)
    return F.resize(whole, [round(height * factor), round(width * factor)], antialias=True)


def make_videos(
    folder: Path, each: int = 4, frames: int = 300, only: Sequence[str] = ()
) -> dict[str, list[Path]]:
    """Ten-second videos of moving texture, by codec and container; all kinds or some."""
    kinds = {"mpeg4.avi": {}, "mpeg4-b.avi": {"bf": "2"}, "mpeg4.mp4": {"bf": "2"}}
    if "libx264" in av.codecs_available:
        kinds |= {"libx264.mp4": {"preset": "veryfast"}, "libx264.mkv": {"preset": "veryfast"}}
    kinds = {kind: kinds[kind] for kind in only or kinds}
    rng = np.random.default_rng(0)
    files = defaultdict(list)
    for number in range(each):
        blocks = rng.integers(0, 256, (30, 43, 3), np.uint8)
        texture = blocks.repeat(8, axis=0).repeat(8, axis=1)[:, :340]
        for kind, options in kinds.items():
            path = folder / f"{number}-{kind}"
            with av.open(str(path), "w") as container:
                codec = kind.partition(".")[0].removesuffix("-b")
                stream = container.add_stream(codec, rate=30, options={"g": "60", **options})
                stream.height, stream.width, stream.pix_fmt = *texture.shape[:2], "yuv420p"
                for shift in range(frames):
                    image = np.ascontiguousarray(np.roll(texture, (shift, 2 * shift), (0, 1)))
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
                container.mux(stream.encode())
            files[kind].append(path)
    return files


def seconds(read: Callable[..., object], *arguments: object) -> float:
    """The time that one call takes."""
    start = time.perf_counter()
    read(*arguments)
    return time.perf_counter() - start


def measure(files: dict[str, list[Path]], clip: ClipOptions, rounds: int) -> None:
    """Read clips of each file in both ways, alternating, and print a row per kind of file."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    seekable: dict[str, int] = defaultdict(int)
    rng = random.Random(0)
    for kind, path in [(kind, path) for kind, paths in files.items() for path in paths] * rounds:
        place = rng.random()
        try:
            frames, can_seek = by_seeking(path, clip, place)  # also reads the file into memory
            expected = by_decoding_all(path, clip, place)
        except (SampleError, av.FFmpegError) as error:
            print(f"{path} is left out: {error}")
            continue
        if not torch.equal(frames, expected):
            print(f"{path}: the clips differ, and it is left out")
            continue
        ways = [by_seeking, by_decoding_all]
        rng.shuffle(ways)
        taken = {way: seconds(way, path, clip, place) for way in ways}
        times[kind].append((taken[by_seeking], taken[by_decoding_all]))
        seekable[kind] += can_seek
    print(f"{'':14} {'seeking':>12} {'whole file':>12} {'ratio':>7} {'middle half':>14}  sought")
    for kind, pairs in times.items():
        seek, whole = np.array(pairs).T
        low, middle, high = np.quantile(whole / seek, [0.25, 0.5, 0.75])
        rates = [clip.frames / np.median(way) for way in (seek, whole)]
        print(
            f"{kind:14} {rates[0]:8.0f} fr/s {rates[1]:8.0f} fr/s {middle:7.2f} "
            f"{low:6.2f} - {high:4.2f}   {seekable[kind]} of {len(pairs)}"
        )


def main() -> None:
    """Read the options, find or make the videos, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", help="folder of videos (default: videos made by this script)")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    parser.add_argument("--stride", type=int, default=2, help="distance between frames of a clip")
    parser.add_argument("--rounds", type=int, default=3, help="clips of each file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if min(options.frames, options.stride, options.rounds) < 1:
        parser.error("--frames, --stride and --rounds must be at least 1")
    clip = ClipOptions(options.frames, options.stride)
    if options.folder:
        files = defaultdict(list)
        for path in sorted(Path(options.folder).expanduser().rglob("*")):
            if path.suffix.lower() in VIDEOS:
                files[path.suffix.lower()].append(path)
        if not files:
            parser.error(f"there are no videos below {options.folder}")
        measure(files, clip, options.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(make_videos(Path(folder)), clip, options.rounds)


if __name__ == "__main__":
    main()
