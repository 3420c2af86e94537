"""Video data whose splits are lists of files: UCF101, HMDB51, and lists of paths and labels."""

import os
from collections.abc import Sequence
from pathlib import Path

from data.class_files import read_class_names
from data.class_lists import label_text
from data.faults import Faults
from data.folders import (
    TRAIN,
    VAL,
    data_root,
    entries,
    named,
    split_folder,
    stand_in_note,
    subfolders,
)
from data.holdout import wants_holdout
from data.paths import resolve
from data.textfiles import read_text
from errors import UserError
from tasks.video.options import VideoOptions
from tasks.video.rows import Clip, VideoData, make_data

CLASS_FILES = ("classes.txt", "class_names.txt", "label_map.txt", "labels.txt", "classind.txt")
VIDEO_FOLDERS = ("videos", "video", "rawframes", "frames", "clips", "data")


def load_ucf101(options: VideoOptions, faults: Faults) -> VideoData:
    """UCF101 and its official lists of three splits."""
    expected = "classInd.txt, trainlist01.txt, testlist01.txt and a folder of the videos"
    root = data_root(options, expected)
    places = [root, *subfolders(root)]
    split = options.split
    names = ("classInd.txt", f"trainlist{split:02d}.txt", f"testlist{split:02d}.txt")
    folder = next((f for f in places if all((f / name).is_file() for name in names)), None)
    if folder is None:
        raise UserError(
            f"Neither {root} nor a folder in it holds {', '.join(names)}: the data folder must "
            f"hold {expected}."
        )
    numbers = _class_numbers(folder / names[0])
    splits = []
    for name in names[1:]:
        listed = _lines(folder / name)
        videos = [video for video, *_ in listed]
        base = next((f for f in places if videos and os.path.isfile(f / videos[0])), None)
        missing = next((v for v in videos if base and not os.path.isfile(base / v)), None)
        if base is None or missing:
            raise UserError(
                f"{missing or next(iter(videos), 'A video')} is not below {base or root}, although "
                f"{folder / name} names it: unpack the videos there."
            )
        for video, *number in listed:
            kind = Path(video).parts[0]
            if number and number[0].lstrip("0") != numbers.get(kind, number[0]).lstrip("0"):
                raise UserError(
                    f"{folder / name} gives {video} the class {number[0]}, but {kind} has the "
                    f"number {numbers[kind]} in {names[0]}: take both files from the same release."
                )
        splits.append([Clip(str(base / video), Path(video).parts[0]) for video in videos])
    return make_data(options, *splits, root, list(numbers), _official_test(folder / names[2]))


def _official_test(file: Path) -> tuple[str, ...]:
    return (
        f"{file}, the official test list, is used to validate, and to choose the best weights.",
    )


def _class_numbers(file: Path) -> dict[str, str]:
    """The number of each class in a file of lines ``1 ApplyEyeMakeup``."""
    numbers = {}
    for fields in _lines(file):
        if len(fields) != 2 or not fields[0].isdecimal():
            raise UserError(
                f"{file} has the line {' '.join(fields)}: every line must be a number and a class, "
                "such as 1 ApplyEyeMakeup."
            )
        numbers[fields[1]] = fields[0]
    return numbers


def _lines(file: Path) -> list[list[str]]:
    """The words of each line that is not blank, backslashes as slashes."""
    lines = read_text(file).replace("\\", "/").splitlines()
    return [line.split() for line in lines if line.strip()]


def load_hmdb51(options: VideoOptions, faults: Faults) -> VideoData:
    """HMDB51 and its official lists: a file per class and split, with 1 (train), 2 (test) or 0."""
    expected = "<class>/<videos>, and <class>_test_split1.txt in testTrainMulti_7030_splits"
    root = data_root(options, expected)
    places = [
        root,
        *subfolders(root),
        *(inner for f in subfolders(root) for inner in subfolders(f)),
    ]
    tail = f"_test_split{options.split}.txt"
    lists = [path for place in places for path in entries(place) if path.name.endswith(tail)]
    if not lists:
        raise UserError(f"{root} holds no list that ends in {tail}: it must hold {expected}.")
    train, val = [], []
    for file in lists:
        kind = file.name.removesuffix(tail)
        folder = next((p / kind for p in places if (p / kind).is_dir()), None)
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            name, _, use = line.strip().rpartition(" ")
            if not line.strip():
                continue
            with faults.of(file, f"line {number}"):
                if use not in ("0", "1", "2"):
                    raise UserError(
                        f"Line {number} of {file} is '{line.strip():.60}': it must be a file and "
                        "1 (train), 2 (test) or 0 (neither)."
                    )
                if use == "0":
                    continue
                if folder is None or not os.path.isfile(folder / name.strip()):
                    raise UserError(
                        f"{name} is not below {folder or root}, although {file} names it: unpack "
                        "the videos there."
                    )
                clip = Clip(str(folder / name.strip()), kind)
                (train if use == "1" else val).append(clip)
    return make_data(options, train, val, root, notes=_official_test(lists[0].parent))


def load_list(options: VideoOptions, faults: Faults) -> VideoData:
    """Lists of videos, train.txt and val.txt, with a path and a label in each line.

    A label is a class's name, or its number in a file of names such as classes.txt. Between path
    and label there may be the number of a folder's frames.
    """
    expected = "train.txt and val.txt, with a path and a label in each line, and the videos"
    root = data_root(options, expected)
    train, val = (_list_file(root, names) for names in (TRAIN, VAL))
    if wants_holdout(options, root, val and _split_of(val)):
        train, val = train or _list_file(root, ("videos", "list", "all")), None
    elif train is None or val is None:
        raise UserError(
            f"{root} has no list {TRAIN[0] if train is None else VAL[0]}.txt: it must hold "
            f"{expected}, or give --val_share 0.1."
        )
    if train is None:
        raise UserError(f"{root} has no list of videos: it must hold {expected}.")
    read = [_labelled(file, root, faults) for file in (train, val) if file]
    names = {label for clips in read for _, label in clips}
    classes, notes = None, stand_in_note(root, _split_of(val)) if val else ()
    numbers = {name: int(label_text(name)) for name in names if label_text(name).isdecimal()}
    if names and len(numbers) == len(names):
        named_by, more = _numbered_classes(root, list(numbers.values()))
        classes, notes = list(named_by.values()), notes + more
        read = [[(path, named_by[numbers[label]]) for path, label in clips] for clips in read]
    clips = [[Clip(path, label) for path, label in pairs] for pairs in read]
    return make_data(options, clips[0], clips[1] if val else None, root, classes, notes)


def _split_of(file: Path) -> str:
    """The name of a list's split: val of val_list_videos.txt."""
    words = file.stem.lower().replace("-", "_").split("_")
    return next((word for word in words if word in VAL), words[0])


def _list_file(root: Path, names: Sequence[str]) -> Path | None:
    """A split's list: train.txt, or a file with the split in its name such as x_train_videos.txt.

    Raises:
        UserError: there are several.
    """
    if file := named(root, names, ".txt"):
        return file
    for name in names:
        files = [path for path in entries(root) if path.suffix.lower() == ".txt"]
        found = [f for f in files if name in f.stem.lower().replace("-", "_").split("_")]
        if len(found) > 1:
            raise UserError(
                f"{root} holds several lists, {found[0].name} and {found[1].name}: call the one "
                f"that is meant {name}.txt."
            )
        if found:
            return found[0]
    return None


def _labelled(file: Path, root: Path, faults: Faults) -> list[tuple[str, str]]:
    """The path and the label of each line."""
    own = split_folder(root, TRAIN if _split_of(file) in TRAIN else VAL)
    bases = [root, *(p for name in VIDEO_FOLDERS if (p := named(root, [name]))), file.parent]
    bases = [base for base in (*bases, own) if base and base.is_dir()]
    bases += [inner for base in bases[1:] for inner in subfolders(base)]
    pairs, seen = [], {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        with faults.of(file, f"line {number}"):
            path, label = _pair(line.strip(), bases, f"Line {number} of {file}")
            if label_text(seen.setdefault(path, label)) != label_text(label):
                raise UserError(
                    f"Line {number} of {file} gives {path} the label {label}, and an earlier one "
                    f"gives it {seen[path]}: remove one."
                )
            pairs.append((path, label))
    if not pairs:
        faults.add(file, f"{file} lists no video: write a path and a label into each line.")
    return pairs


def _pair(line: str, bases: Sequence[Path], where: str) -> tuple[str, str]:
    for separator in ("\t", ",", ";", None):
        if separator is None or separator in line:
            fields = [field.strip() for field in line.split(separator)]
            break
    if len(fields) < 2 or not all(fields):
        raise UserError(f"{where} is '{line:.60}': it must be a path and a label.")
    label, path = fields[-1], line[: line.rstrip().rindex(fields[-1])].strip(" \t,;")
    found = resolve(path, bases)
    if found is None and len(fields) > 2 and fields[-2].isdecimal():  # the number of frames
        found = resolve(path[: path.rindex(fields[-2])].strip(" \t,;"), bases)
    if found is None:
        raise UserError(f"{where} names {path}, which is not there: restore it.")
    return str(found), label


def _numbered_classes(root: Path, numbers: Sequence[int]) -> tuple[dict[int, str], tuple[str, ...]]:
    """The names of classes by number: from a file of names, or their numbers.

    Raises:
        UserError: a number has no name.
    """
    highest = max(numbers)
    file = named(root, CLASS_FILES)
    if file:
        names = read_class_names(file)
        unknown = next((number for number in sorted(numbers) if number not in names), None)
        if unknown is not None:
            raise UserError(
                f"The lists in {root} have the class {unknown}, but {file} has {len(names)} names, "
                f"numbered from {min(names)}: correct one of them."
            )
        return names, ()
    if highest >= 100 * len(set(numbers)):
        raise UserError(
            f"The lists in {root} have {len(set(numbers))} classes with numbers up to {highest}: "
            "number them from 0, or write names instead."
        )
    return {number: f"class {number}" for number in range(highest + 1)}, (
        f"No class names were given: the lists show {highest + 1} classes.",
    )
