"""The files that ``--input`` names."""

import contextlib
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.decode import read_image
from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, find_files
from data.on_disk import read_to_disk_if_large
from data.textfiles import read_text
from errors import UserError
from inference.clips import as_video
from inference.inputs import Input, out_names, readable
from inference.options import SAVED
from tasks.video.files import VIDEOS, find_videos

LISTS = (".txt",)
RESULTS = (*SAVED, "frames")  # folders below --output


class FileSource:
    """Pictures and videos in files, or a camera.

    Args:
        given: names of files or folders, globs, lists of names, a camera's number, or "-".
        media: what the model takes: "image", which videos are made of too, or "video".
        output: the output folder; results in it are no inputs.
        large_on_disk: whether large pictures are kept in files, for tiles.

    Raises:
        UserError: something isn't there, there is nothing to predict on, or results would be
            written over an input.
    """

    is_scored = False

    def __init__(
        self,
        given: str | Sequence[str],
        media: str,
        output: str | None = None,
        large_on_disk: bool = False,
    ) -> None:
        self.media, self.large_on_disk, self.notes = media, large_on_disk, []
        places = {os.path.abspath(output), os.path.realpath(output)} if output else ()
        self.results = tuple(os.path.join(p, name, "") for p in places for name in RESULTS)
        given = [given] if isinstance(given, str) else list(given)
        self.alone = len(given) == 1
        found = [(readable(name), path) for each in given for name, path in self._find(each)]
        for _, path in found:
            self._refuse_result(path)
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
        if given == "-":
            yield from self._listed(sys.stdin.read(), Path("."))
        elif given.isdecimal() and not path.exists():
            yield f"camera {given}", given
        elif path.is_dir():
            yield from self._in_folder(given, path)
        elif path.is_file() and path.suffix.lower() in LISTS:
            yield from self._listed(read_text(path), path.parent)
        elif path.is_file():
            yield given, str(path)
        elif glob.has_magic(given):
            found = sorted(glob.glob(str(path), recursive=True))
            files = [name for name in found if Path(name).is_file() and not self._is_result(name)]
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

    def _in_folder(self, given: str, folder: Path) -> Iterator[tuple[str, str]]:
        self._refuse_result(folder)
        if self.media == "image":
            found = find_files(folder, faults := Faults(), VIDEOS | IMAGE_SUFFIXES, any_name=True)
        else:
            found = find_videos(folder, faults := Faults(), any_name=True)
        files = [path for path in found.files if not self._is_result(path)]
        left_out = [path for path in found.left_out if not self._is_result(path)]
        if self.media == "video" and not files and any(_is_frame(folder, p) for p in left_out):
            yield given, str(folder)  # it is one video
            return
        for path in files:
            # Below several folders the same names may occur.
            name = path.relative_to(folder) if self.alone else path
            yield name.as_posix(), str(path)
        self.notes += [f"Left out: {fault.sentence}" for fault in faults.found]
        if left_out:
            self.notes.append(
                f"{len(left_out)} other files in {folder} are left out, by their suffix."
            )

    def _is_result(self, path: str | Path) -> bool:
        return os.path.join(os.path.abspath(path), "").startswith(self.results)

    def _refuse_result(self, path: str | Path) -> None:
        if self._is_result(path):
            raise UserError(
                f"The input {path} lies where results are written: give another --output."
            )

    @contextlib.contextmanager
    def open(self, number: int) -> Iterator[tuple[Any, None]]:
        """The picture or the open video of an input.

        Raises:
            UserError: it can't be read; the message names it.
        """
        path = self.inputs[number].path
        if self.media == "image":
            read = read_to_disk_if_large if self.large_on_disk else read_image
            yield read({"path": path, "bytes": None}, path), None
        else:
            with as_video(path) as video:
                yield video, None


def _is_frame(folder: Path, path: Path) -> bool:
    return path.parent == folder and path.suffix.lower() in IMAGE_SUFFIXES


def kind_of(path: str, media: str) -> str:
    """Whether an input is a picture, a video or a camera, by its name."""
    if path.isdecimal() and not Path(path).exists():
        return "camera"
    return "video" if media == "video" or Path(path).suffix.lower() in VIDEOS else "image"
