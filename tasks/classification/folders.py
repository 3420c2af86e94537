"""Labelled images in class folders, or named by tables."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.class_lists import by_number, label_text, require_classes
from data.faults import Faults
from data.folders import (
    IMAGE_SUFFIXES,
    TRAIN,
    VAL,
    data_root,
    entries,
    find_files,
    left_out_note,
    named,
    split_folder,
    stand_in_note,
    stem_below,
    subfolders,
)
from data.holdout import hold_out, wants_holdout
from data.paths import resolve
from data.textfiles import read_text
from errors import UserError
from tasks.classification.rows import ClassificationData, SourceOptions, rows

PATH_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "filepath", "img")
PATH_COLUMNS += ("image_id", "image_name", "id")
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name", "label_name", "species")
LABEL_COLUMNS += ("breed", "y")


class Sample(NamedTuple):
    """A labelled image."""

    path: str
    label: str


def load_folder(options: SourceOptions, faults: Faults) -> ClassificationData:
    """<split>/<class>/<image file>, or <class>/<image file> without splits."""
    expected = "train and val, each with a folder of images per class"
    root = data_root(options, expected)
    train_root, val_root = split_folder(root, TRAIN), split_folder(root, VAL)
    if train_root is None and val_root is not None:
        raise UserError(f"{root} has {val_root.name} but no train: it must hold {expected}.")
    train_root = train_root or root
    classes = _class_folders(train_root, expected)
    holds_out = wants_holdout(options, root, val_root and val_root.name) or val_root is None
    train, notes = _images(train_root, classes, faults)
    if holds_out:
        return _split(options, root, train, classes, notes)
    unknown = [path.name for path in subfolders(val_root) if path.name not in classes]
    if unknown:
        raise UserError(
            f"{val_root} has the class {unknown[0]}, which {train_root} lacks: remove it, or add "
            "images of it for training."
        )
    val, more = _images(val_root, classes, faults, may_lack=True)
    notes += more + stand_in_note(root, val_root.name)
    return _data(train, val, classes, notes)


def _class_folders(root: Path, expected: str) -> list[str]:
    folders = subfolders(root)
    if len(folders) < 2:
        raise UserError(
            f"{root} holds {len(folders)} folders of classes, but classifying takes 2: the data "
            f"folder must hold {expected}."
        )
    inner = [{path.name for path in subfolders(folder)} for folder in folders]
    if len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        raise UserError(
            f"{folders[0]} and {folders[1].name}, taken for classes, all hold the same folders "
            f"({', '.join(sorted(inner[0])[:4])}): if those are the classes, call the splits train "
            "and val; else join the folders of each class."
        )
    return [folder.name for folder in folders]


def _images(
    root: Path, classes: Sequence[str], faults: Faults, may_lack: bool = False
) -> tuple[list[Sample], tuple[str, ...]]:
    """The images of every class, sorted by class and name, and a note on what is left out."""
    found = find_files(root, faults)
    samples, beside = [], []
    for path in found.files:
        inner = path.relative_to(root).parts
        if len(inner) > 1:
            samples.append(Sample(str(path), inner[0]))
        else:
            beside.append(path)
    samples.sort(key=lambda sample: sample.label)  # stable: by name within a class
    notes = left_out_note(root, found.left_out, "images")
    if beside:
        notes += (
            f"{len(beside)} images beside the folders of the classes in {root} are left out, "
            f"{beside[0].name} first.",
        )
    missing = sorted(set(classes) - {sample.label for sample in samples})
    if missing and not (may_lack and samples):
        faults.add(
            root / missing[0],
            f"There are no images in {root / missing[0]}: put images of the class there, or remove "
            "the folder.",
        )
    return samples, notes


class _Known(NamedTuple):
    """The images below a folder, by path and by name alone, both without suffix."""

    by_path: dict[str, list[Path]]
    by_name: dict[str, list[Path]]

    @classmethod
    def below(cls, root: Path, faults: Faults) -> "_Known":
        images = cls({}, {})
        for path in find_files(root, faults).files:
            images.by_path.setdefault(stem_below(root, path), []).append(path)
            images.by_name.setdefault(path.stem, []).append(path)
        return images


def load_csv(options: SourceOptions, faults: Faults) -> ClassificationData:
    """Tables of paths and labels: train.csv and val.csv, or one table of which a part validates."""
    expected = "train.csv and val.csv with columns path and label, and the images"
    root = data_root(options, expected)
    train_file, val_file = named(root, TRAIN, ".csv"), named(root, VAL, ".csv")
    if train_file is None:
        tables = [path for path in entries(root) if path.suffix.lower() in (".csv", ".tsv")]
        if len(tables) != 1:
            raise UserError(
                f"{root} has no train.csv, and {len(tables)} other tables: it must hold {expected}."
            )
        train_file = tables[0]
    val_name = val_file.stem if val_file not in (None, train_file) else None
    holds_out = wants_holdout(options, root, val_name) or val_name is None
    images = _Known.below(root, faults)
    train, notes = _table(options, train_file, root, images, faults)
    classes = sorted({sample.label for sample in train}, key=by_number)
    if holds_out:
        return _split(options, root, train, classes, notes)
    val, more = _table(options, val_file, root, images, faults)
    for sample in val:
        if sample.label not in classes:
            faults.add(
                sample.path,
                f"{sample.path} has the label {sample.label} in {val_file}, which no training "
                "image has: correct it, or add images for training.",
            )
    val = [sample for sample in val if sample.label in classes]
    return _data(train, val, classes, notes + more + stand_in_note(root, val_name))


def _table(
    options: SourceOptions, table: Path, root: Path, images: _Known, faults: Faults
) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples of a table.

    Args:
        options: image_column, label_column and skip_unlabelled.
        table: CSV, its columns separated by commas, semicolons or tabs.
        root: the data folder.
        images: those below it.
        faults: gets the lines that can't be used.
    """
    text = read_text(table)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    path_column, label_column, start = _columns(options, table, lines[0] if lines else [])
    samples, skipped, seen = [], 0, {}
    for number, line in enumerate(lines[start:], start=start + 1):
        if not any(field.strip() for field in line):
            continue
        with faults.of(table, f"line {number}"):
            if len(line) <= max(path_column, label_column):
                raise UserError(
                    f"Line {number} of {table} has {len(line)} fields: it must hold a path and a "
                    "label."
                )
            name, label = line[path_column].strip(), label_text(line[label_column])
            if not label and options.skip_unlabelled:
                skipped += 1
                continue
            if not label:
                raise UserError(
                    f"Line {number} of {table} gives {name} no label: add it, remove the line, or "
                    "leave such lines out with --skip_unlabelled."
                )
            path = _find(name, f"Line {number} of {table}", root, images)
            if seen.setdefault(path, label) != label:
                raise UserError(
                    f"Line {number} of {table} gives {name} the label {label}, and an earlier one "
                    f"gives it {seen[path]}: remove one."
                )
            samples.append(Sample(str(path), label))
    if not samples:
        faults.add(table, f"{table} names no image below {root} with a label: correct it.")
    note = f"{skipped} lines of {table} without a label are left out."
    return samples, (note,) if skipped else ()


def _columns(options: SourceOptions, table: Path, first: list[str]) -> tuple[int, int, int]:
    """Numbers of the columns of paths and labels, and of the first line that is a sample."""
    header = [field.strip().lower() for field in first]
    found = []
    for option, usual in (("image_column", PATH_COLUMNS), ("label_column", LABEL_COLUMNS)):
        names = (getattr(options, option).lower(), *usual)
        found.append(next((header.index(name) for name in names if name in header), None))
    if None not in found:
        return found[0], found[1], 1
    if len(first) == 2 and Path(first[0].strip()).suffix.lower() in IMAGE_SUFFIXES:
        return 0, 1, 0  # no header
    missing = "--image_column" if found[0] is None else "--label_column"
    raise UserError(
        f"The first line of {table}, {','.join(first):.80}, names no column for {missing}: give "
        "its name with that option."
    )


def _find(name: str, where: str, root: Path, images: _Known) -> Path:
    """The file that a table names, with or without suffix; a bare name may lie in any folder.

    Raises:
        UserError: there is none, or there are several.
    """
    found = resolve(name, [root])
    if found and found.is_file():
        return found
    name = name.replace("\\", "/")
    stem = os.path.splitext(name)[0] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    matches = images.by_path.get(stem) or images.by_name.get(stem, [])
    matches = [path for path in matches if path.name == name] or matches
    if len(matches) > 1:
        raise UserError(
            f"{where} names {name}, which may be {matches[0]} or {matches[1]}: write the "
            "whole path."
        )
    if not matches:
        raise UserError(
            f"{where} names {name}, which is not below {root}: restore it, or remove the line."
        )
    return matches[0]


def _split(
    options: SourceOptions,
    root: Path,
    samples: list[Sample],
    classes: list[str],
    notes: tuple[str, ...],
) -> ClassificationData:
    """The samples, a part of them held out to validate."""
    names = [os.path.relpath(sample.path, root).replace(os.sep, "/") for sample in samples]
    labels = [sample.label for sample in samples]
    train, val, note = hold_out(samples, names, options, root, labels)
    missing = sorted(set(classes) - {sample.label for sample in train})
    if missing:
        raise UserError(
            f"All images of the class {missing[0]} in {root} would be held out: add images, or ask "
            "for another share or fold."
        )
    return _data(train, val, classes, notes + note)


def _data(
    train: list[Sample], val: list[Sample], classes: list[str], notes: tuple[str, ...]
) -> ClassificationData:
    require_classes(classes, "The data set")
    numbers = {name: number for number, name in enumerate(classes)}
    splits = (
        rows(
            [sample.path for sample in samples],
            [numbers[sample.label] for sample in samples],
            classes,
        )
        for samples in (train, val)
    )
    return ClassificationData(*splits, classes, notes)
