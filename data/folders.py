"""Data sets in folders: finding the folder, its splits and its files."""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.faults import Faults
from data.notes import some_of
from data.sources import SourceOptions
from errors import UserError

# What Pillow opens and no picture is to be read from: stubs that only know the header, and formats
# for which it starts another program.
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}

# Pillow refuses above twice this number, and warns above it: 13,400 x 13,400 pixels by itself.
MOST_PIXELS = 2**30
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Image.init()
COMMON = ("JPEG", "PNG")  # tried first
PICTURE_FORMATS = (*COMMON, *(name for name in Image.ID if name not in {*COMMON, *NOT_PICTURES}))
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in PICTURE_FORMATS
)

# The usual names of splits, in the order in which they are looked for.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VAL = ("val", "validation", "valid", "validate", "dev", "eval", "evaluation", *TEST)


def data_root(options: SourceOptions, expected: str, *inner: str) -> Path:
    """The data set's folder: ``data_dir``, or a folder of a usual name inside it.

    Args:
        options: dataset and data_dir.
        expected: what the folder must hold, for the messages.
        inner: usual names of the data set's own folder, tried in order.

    Raises:
        UserError: no folder was given, it doesn't exist, can't be read, or is empty.
    """
    if options.data_dir is None:
        raise UserError(
            f"--dataset {options.dataset} needs --data_dir, the folder that holds {expected}."
        )
    root = Path(options.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"There is no data folder {root}: check --data_dir.")
    if not entries(root):
        raise UserError(f"The data folder {root} is empty: put {expected} into it.")
    return next((root / name for name in inner if (root / name).is_dir()), root)


def require_folders(dataset: str, root: Path, expected: str, *names: str) -> list[Path]:
    """The folders of these names in ``root``.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if not (root / name).is_dir():
            raise UserError(
                f"{root} doesn't have the layout of {dataset}, because it has no {name}: it must "
                f"hold {expected}."
            )
    return [root / name for name in names]


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name; nothing hidden.

    Raises:
        UserError: the folder can't be read.
    """
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if not _hidden(entry.name))
    except OSError as error:
        raise _unreadable(folder, error) from None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; links are followed, nothing hidden.

    Raises:
        UserError: the folder can't be read.
    """
    return [path for path in entries(folder) if path.is_dir()]


def named(folder: Path, names: Iterable[str], suffix: str = "") -> Path | None:
    """The file or folder that has one of these names, written in upper or lower case.

    Args:
        folder: to look into.
        names: in the order in which they are looked for, in lower case.
        suffix: which the name is followed by, in lower case.

    Raises:
        UserError: two have the same name but for case, or the folder can't be read.
    """
    if not folder.is_dir():
        return None
    there: dict[str, list[Path]] = {}
    for path in entries(folder):
        there.setdefault(path.name.lower(), []).append(path)
    for name in names:
        found = there.get(name + suffix, [])
        if len(found) > 1:
            raise UserError(
                f"{folder} holds both {found[0].name} and {found[1].name}: join them, or rename "
                "one."
            )
        if found:
            return found[0]
    return None


def split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split, TRAIN or VAL, in ``root``: the first name that there is, in any case.

    Raises:
        UserError: there are several that mean the same split, of which one would be left out.
    """
    found = [path for name in names if (path := named(root, [name])) and path.is_dir()]
    same = [path for path in found if path.name.lower() not in TEST]
    if len(same) > 1:
        raise UserError(
            f"{root} holds both {same[0].name} and {same[1].name}, which mean the same split: join "
            "them, or rename one."
        )
    return found[0] if found else None


def files_below(folder: Path, faults: Faults | None = None) -> list[Path]:
    """Every file below a folder, sorted; the one walker of all tasks.

    Links to files and folders are followed, and each real folder is entered once, so that links in
    a circle end; where a folder can be reached by several ways, the one without links counts.
    Nothing hidden is found (names that begin with a dot, ``__MACOSX``). A pipe, socket or device is
    no file.

    Args:
        folder: to search.
        faults: gets the folders that can't be read, and the pipes; with None any is refused.

    Raises:
        UserError: there are some, and no ``faults`` to take them.
    """
    if faults is None:
        found = files_below(folder, faults := Faults())
        faults.stop_if_any()
        return found
    entered: set[tuple[int, int]] = set()
    files: list[str] = []
    links = [os.fspath(folder)]
    while links:
        places, links = sorted(links, reverse=True), []
        while places:
            place = places.pop()
            with faults.of(place):
                for entry in _new_entries(place, entered):
                    if entry.is_dir(follow_symlinks=False):
                        places.append(entry.path)
                    elif entry.is_dir():
                        links.append(entry.path)  # followed when all real folders are known
                    elif _is_pipe(entry):
                        faults.add(entry.path, f"{entry.path} is no regular file: remove it.")
                    else:
                        files.append(entry.path)
    return [Path(file) for file in sorted(files, key=lambda file: file.split(os.sep))]


def _new_entries(place: str, entered: set[tuple[int, int]]) -> list[os.DirEntry]:
    """What lies in a folder that has not been entered yet, sorted; nothing hidden."""
    try:
        known = os.stat(place)
        if (known.st_dev, known.st_ino) in entered:
            return []
        entered.add((known.st_dev, known.st_ino))
        with os.scandir(place) as found:
            return sorted((e for e in found if not _hidden(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(place, error) from None


def _is_pipe(entry: os.DirEntry) -> bool:
    """Whether an entry is there and is no file; a broken link is reported when it is opened."""
    return not entry.is_file() and (not entry.is_symlink() or os.path.exists(entry.path))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _unreadable(folder: object, error: OSError) -> UserError:
    return UserError(
        f"The folder {folder} can't be read ({error.strerror}): make it readable, or move it away."
    )


class Found(NamedTuple):
    """The files below a folder.

    Attributes:
        files: those of the kinds that were looked for, sorted.
        left_out: the others, sorted.
    """

    files: list[Path]
    left_out: list[Path]


def find_files(
    folder: Path,
    faults: Faults | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    any_name: bool = False,
) -> Found:
    """The files below a folder whose names end as ``suffixes`` say, in any case, and the others.

    Args:
        folder: to search, see ``files_below``.
        faults: gets what can't be read, and the names that aren't UTF-8; with None any is refused.
        suffixes: in lower case, with the dot.
        any_name: whether to take names that aren't UTF-8 too; the tables of data sets can't.

    Raises:
        UserError: there is a fault, and no ``faults`` to take it.
    """
    if faults is None:
        found = find_files(folder, faults := Faults(), suffixes, any_name)
        faults.stop_if_any()
        return found
    found = Found([], [])
    for path in files_below(folder, faults):
        wanted = path.suffix.lower() in suffixes
        if wanted and not any_name and not _is_utf8(path):
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            faults.add(shown, f"The name of the file {shown} is not UTF-8: rename it.")
        else:
            found[not wanted].append(path)
    return found


def _is_utf8(path: Path) -> bool:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def stem_below(folder: Path, path: Path) -> str:
    """A file's path relative to a folder above it, without the suffix, with slashes."""
    return path.relative_to(folder).with_suffix("").as_posix()


def left_out_note(where: object, left_out: Sequence[Path], what: str) -> tuple[str, ...]:
    """A note that counts and names the files that are left out; none if there are none.

    Args:
        where: the folder, for the note.
        left_out: the files.
        what: which they are not, such as "images".
    """
    if not left_out:
        return ()
    kinds = Counter(path.suffix.lower() or "no suffix" for path in left_out)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    shown = some_of([shown_name(path) for path in left_out])
    are = "1 file is" if len(left_out) == 1 else f"{len(left_out)} files are"
    return (f"{are} left out in {where}, being no {what} ({counts}): {shown}.",)


def shown_name(path: Path) -> str:
    """A file's name as a message can print it, also where it isn't UTF-8."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def stand_in_note(where: object, split: str) -> tuple[str, ...]:
    """A note for the user if a test split serves as the validation split; else no note."""
    if split.lower() not in TEST:
        return ()
    note = f"{where} has no split val: {split} is used to validate, and to choose the best weights."
    return (note,)
