"""Which files and folders below a folder are videos."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, Found, find_files

VIDEOS = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
ANIMATED = (".gif", ".png", ".apng", ".webp")  # pictures that may be videos


def find_videos(folder: Path, faults: Faults, any_name: bool = False) -> Found:
    """Video files and folders of frames below a folder, sorted, and the files that are neither.

    A folder of images is a video, unless it is ``folder`` itself or there are videos in it or below
    it, whose thumbnails the images are. Animated GIFs are video files.

    Args:
        folder: to search.
        faults: gets what can't be read, and animations that can't be decoded as videos.
        any_name: see ``find_files``.
    """
    found = find_files(folder, faults, VIDEOS | IMAGE_SUFFIXES, any_name)
    videos = [path for path in found.files if path.suffix.lower() in VIDEOS]
    pictures: dict[Path, list[Path]] = {}
    for path in found.files:
        if path.suffix.lower() not in VIDEOS:
            pictures.setdefault(path.parent, []).append(path)
    clips = [path for place, files in pictures.items() for path in _gifs(place, files, faults)]
    videos, known = videos + clips, set(clips)
    around = {parent for path in videos for parent in path.parents}
    left_out = list(found.left_out)
    for place, files in pictures.items():
        if place == folder or place in around:
            left_out += [path for path in files if path not in known]
            continue
        animation = next((path for path in _firsts(files, ANIMATED[1:]) if _moves(path)), None)
        if animation:
            sentence = f"{animation} is an animation: save it as a video file or a GIF."
            faults.add(animation, sentence)
        videos.append(place)
    return Found(sorted(videos), sorted(left_out))


def _gifs(folder: Path, files: list[Path], faults: Faults) -> list[Path]:
    """The GIFs of a folder that move: all, or none, where they are frames."""
    gifs = [path for path in files if path.suffix.lower() == ".gif"]
    clips = [path for path in gifs if _moves(path)]
    if 0 < len(clips) < len(gifs):
        still = min(set(gifs) - set(clips))
        faults.add(
            folder,
            f"{folder} holds GIFs that move, such as {clips[0].name}, and {still.name}, which has "
            "one frame: put clips and frames into folders of their own.",
        )
    return clips


def _firsts(files: list[Path], suffixes: Iterable[str]) -> list[Path]:
    """The first file of each kind that there is; a folder of frames may hold thousands."""
    firsts = (next((p for p in files if p.suffix.lower() == kind), None) for kind in suffixes)
    return [path for path in firsts if path]


def _moves(picture: Path) -> bool:
    try:
        with Image.open(picture) as image:
            return getattr(image, "is_animated", False)
    except Exception:  # of many types; a broken picture is reported when it is decoded
        return False
