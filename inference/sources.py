"""What predict.py predicts on: files that ``--input`` names, or a data set."""

import contextlib
import glob
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from data.decode import read_image
from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, find_files
from data.textfiles import read_text
from errors import UserError
from inference.clips import as_video
from inference.options import PredictOptions
from inference.trained import Trained
from tasks.video.files import VIDEOS

LISTS = (".txt",)


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: what tables and messages call it; distinct.
        out: the path of what is written for it, below a folder and without suffix; distinct.
        path: of its file; None for a data set's sample, and a camera's number.
        kind: image, video or camera.
    """

    name: str
    out: str
    path: str | None
    kind: str


class Source(Protocol):
    """Inputs, and what opens them.

    Attributes:
        inputs: in the order of the tables.
        notes: sentences about choices made here that a user should see.
        is_scored: whether each input comes with its truth.
    """

    inputs: list[Input]
    notes: list[str]
    is_scored: bool

    def open(self, number: int) -> AbstractContextManager[tuple[Any, Any]]:
        """The picture uint8 (3, H, W) or the open video of an input, and its truth or None."""


def find_source(options: PredictOptions, model: Trained) -> Source:
    """What the options name.

    Raises:
        UserError: there is nothing, or nothing that the model can take.
    """
    if options.dataset:
        from inference.rows import DatasetSource

        return DatasetSource(options, model)
    return FileSource(options.input, model.inference.media)


class FileSource:
    """Pictures and videos in files, or a camera.

    Args:
        given: names of files or folders, globs, lists of names, a camera's number, or "-".
        media: what the model takes: "image", which videos are made of too, or "video".

    Raises:
        UserError: something isn't there, or there is nothing to predict on.
    """

    is_scored = False

    def __init__(self, given: str | Sequence[str], media: str) -> None:
        self.media, self.notes = media, []
        given = [given] if isinstance(given, str) else list(given)
        self.alone = len(given) == 1
        found = [pair for each in given for pair in self._find(each)]
        paths = dict(found)
        if len(paths) < len(found):
            self.notes.append(f"{len(found) - len(paths)} names are given twice, and taken once.")
        if not paths:
            kinds = "pictures or videos" if media == "image" else "videos"
            raise UserError(f"There are no {kinds} in {', '.join(given)}: check --input.")
        outs = out_names(list(paths))
        self.inputs = [
            Input(name, out, path, kind_of(path, media))
            for (name, path), out in zip(paths.items(), outs, strict=True)
        ]

    def _find(self, given: str) -> Iterator[tuple[str, str]]:
        """(name, path) of every file that one word of ``--input`` means."""
        path = Path(given).expanduser()
        if self.media == "video" and _holds_frames(path):
            yield given, str(path)
        elif given == "-":
            yield from self._listed(sys.stdin.read(), Path("."))
        elif given.isdecimal() and not path.exists():
            yield f"camera {given}", given
        elif path.is_dir():
            yield from self._in_folder(path)
        elif path.is_file() and path.suffix.lower() in LISTS:
            yield from self._listed(read_text(path), path.parent)
        elif path.is_file():
            yield given, str(path)
        elif glob.has_magic(given):
            found = sorted(glob.glob(str(path), recursive=True))
            files = [name for name in found if Path(name).is_file()]
            if not files:
                raise UserError(f"No file has a name like {given}: check --input.")
            yield from ((name, name) for name in files)
        else:
            raise UserError(f"There is no {given}: check --input.")

    def _listed(self, text: str, base: Path) -> Iterator[tuple[str, str]]:
        """The files of a list; names are relative to the working folder, or to the list."""
        for line in filter(None, map(str.strip, text.splitlines())):
            path = Path(line).expanduser()
            beside = base / path
            # One that isn't there is reported with the others that can't be used.
            yield line, str(path if path.exists() or not beside.exists() else beside)

    def _in_folder(self, folder: Path) -> Iterator[tuple[str, str]]:
        wanted = VIDEOS | IMAGE_SUFFIXES if self.media == "image" else VIDEOS
        found = find_files(folder, faults := Faults(), wanted)
        for path in found.files:
            # Below several folders the same names may occur.
            name = path.relative_to(folder) if self.alone else path
            yield name.as_posix(), str(path)
        self.notes += [f"Left out: {fault.sentence}" for fault in faults.found]
        if found.left_out:
            self.notes.append(
                f"{len(found.left_out)} other files in {folder} are left out, by their suffix."
            )

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[tuple[Any, None]]:
        """The picture or the open video of an input.

        Raises:
            UserError: it can't be read; the message names it.
        """
        path = self.inputs[number].path
        if self.media == "image":
            yield read_image({"path": path, "bytes": None}, path), None
        else:
            with as_video(path) as video:
                yield video, None


def _holds_frames(path: Path) -> bool:
    """Whether a folder is one video: pictures, and neither videos nor folders."""
    if not path.is_dir():
        return False
    inside = [each for each in path.iterdir() if not each.name.startswith(".")]
    return bool(inside) and all(
        each.is_file() and each.suffix.lower() in IMAGE_SUFFIXES for each in inside
    )


def kind_of(path: str, media: str) -> str:
    """Whether an input is a picture, a video or a camera, by its name."""
    if path.isdecimal() and not Path(path).exists():
        return "camera"
    return "video" if media == "video" or Path(path).suffix.lower() in VIDEOS else "image"


def out_names(names: Sequence[str]) -> list[str]:
    """Where what is made of each input goes: its name without suffix, or with it where two agree.

    The folder that holds all inputs is left out. Names that lead out of a folder lead into it. No
    two are the same.
    """
    plain = [_inside(name) for name in names]
    common = 0
    while len({path.parts[: common + 1] for path in plain}) == 1 and all(
        len(path.parts) > common + 1 for path in plain
    ):
        common += 1
    plain = [PurePosixPath(*path.parts[common:]) for path in plain]
    stems = Counter(str(path.with_suffix("")) for path in plain)
    outs: list[str] = []
    taken: set[str] = set()
    for path in plain:
        stem = str(path.with_suffix(""))
        out = base = stem if stems[stem] == 1 else str(path)
        number = 2
        while out in taken:
            out, number = f"{base}-{number}", number + 1
        taken.add(out)
        outs.append(out)
    return outs


def _inside(name: str) -> PurePosixPath:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return PurePosixPath(*[part for part in parts if part not in ("/", "..")] or ["input"])
