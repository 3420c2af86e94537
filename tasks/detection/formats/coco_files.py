"""Where the files of COCO's layout lie: the annotations of a split, and their images."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath

from data.folders import TRAIN, VAL, entries, subfolders
from data.notes import some_of
from data.sources import evenly_spaced
from data.textfiles import read_json_lists
from errors import UserError
from tasks.detection.formats.splits import Place

# The places of a split's file, in the order in which they are tried; {} is a name of the split.
FILES = (
    "annotations/instances_{}20??.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "instances_{}20??.json",
    "instances_{}.json",
    "{}.json",
)
# Folders with a file of any name: of a split, and of everything.
SPLIT_FOLDERS = ("{}", "{}/annotations", "annotations/{}")
OTHERS = {"keypoints", "captions", "panoptic", "stuff", "info"}  # COCO's files of other tasks
SAMPLED = 32  # images of a file that are looked for, to find their folder
MOST_FILES = 50  # JSON files of a folder that are opened, to tell which one is COCO's
PARTS = {"images", "annotations", "categories"}


def find_split(root: Path, split_names: Sequence[str]) -> Place | None:
    """The split's files in the order of their years, the last of which is to be used.

    Raises:
        UserError: one folder holds several files that could be meant.
    """
    for pattern in FILES:
        for split in split_names:
            if found := sorted(root.glob(pattern.format(_any_case(split)))):
                return Place(split, found)
    for split in split_names:
        for pattern in SPLIT_FOLDERS:
            for folder in sorted(root.glob(pattern.format(_any_case(split)))):
                if file := _only_coco_file(folder):
                    return Place(split, [file])
    for split in split_names:
        named = [file for file in _json_files(root) if split in _words(file)]
        if named := [file for file in named if is_coco(file)]:
            return Place(split, [_only(named)])
    return None


def find_whole(root: Path) -> Place | None:
    """The one file of everything: whatever its name, in the data folder or in one inside it.

    Raises:
        UserError: there are several.
    """
    found = [file for file in _json_files(root, *subfolders(root)) if is_coco(file)]
    return Place("", [_only(found)]) if found else None


def _any_case(name: str) -> str:
    """A pattern for a name in upper or lower case."""
    return "".join(f"[{letter}{letter.upper()}]" for letter in name)


def _words(file: Path) -> set[str]:
    return set(re.findall("[a-z]+", file.stem.lower()))


def _json_files(root: Path, *more: Path) -> list[Path]:
    """The JSON files right in folders: the data folder, its ``annotations``, and others."""
    folders = dict.fromkeys((root, root / "annotations", *more))
    found = []
    for folder in folders:
        files = entries(folder) if folder.is_dir() else []
        files = [path for path in files if path.suffix.lower() == ".json" and path.is_file()]
        found += [path for path in files if not _words(path) & OTHERS][:MOST_FILES]
    return found


def _only_coco_file(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    files = [path for path in entries(folder) if path.suffix.lower() == ".json"]
    found = [file for file in files[:MOST_FILES] if is_coco(file)]
    return _only(found) if found else None


def _only(files: list[Path]) -> Path:
    if len(files) > 1:
        raise UserError(
            f"{files[0].parent} and what lies in it hold several COCO files that could be meant "
            f"({some_of([file.name for file in files])}): keep one."
        )
    return files[0]


def is_coco(file: Path) -> bool:
    """Whether a JSON file holds images, annotations and categories; a broken one doesn't."""
    try:
        content = read_json_lists(file)
    except UserError:
        return False
    return isinstance(content, dict) and content.keys() >= PARTS


def find_image_folder(
    root: Path, split: str, file: Path, names: Sequence[str]
) -> Callable[[str], Path]:
    """A function from the names of a file's images to their paths.

    The folder is the one that holds most of the images, as far as a sample of them shows. The
    folders of the other split are left out: its images may have the same names. Where the names
    have folders that aren't there, those are left out, if the names remain distinct.

    Raises:
        UserError: none of the usual folders holds any.
    """
    stem = file.stem.removeprefix("instances_")
    folders = [parent / stem for parent in (root, root / "images")]
    folders += [file.parent, file.parent / "images"]
    if split:
        cased = {path.name.lower(): path.name for path in subfolders(root)}
        same = (cased.get(name, name) for name in (TRAIN if split in TRAIN else VAL))
        folders += [parent / name for name in same for parent in (root, root / "images")]
    if file.parent != root:
        folders += [file.parent.parent / "images", file.parent.parent]
    if not split:
        folders += subfolders(root)
    folders += [root / "images", root]
    sample = [names[number] for number in evenly_spaced(len(names), SAMPLED)]
    ways: list[Callable[[str], str]] = [str, _slashes, _base]
    for way in ways:
        if way is _base and len(set(map(_base, names))) < len(names):
            continue
        found = [sum(os.path.isfile(folder / way(name)) for name in sample) for folder in folders]
        if any(found):
            folder = folders[found.index(max(found))]
            return lambda name: folder / way(name)
    first = names[0][:200] if names else "no image"
    raise UserError(
        f"{file} lists {first}, which like the others is in none of the usual folders: put the "
        f"images into {root / stem}."
    )


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _base(name: str) -> str:
    return PureWindowsPath(name).name  # of a path with slashes or backslashes
