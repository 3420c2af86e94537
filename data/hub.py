"""Data sets of the Hugging Face hub, or local copies of them, in a task's schema without a copy.

``Dataset.cast`` and ``Dataset.add_column`` can write all images or videos anew, into the user's
own folder and once per process. Here the media stay where they are, and only the labels are new.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable, concat_tables

from data.class_lists import by_number, label_text
from data.folders import TRAIN, VAL, stand_in_note
from data.holdout import held_out, holdout_note, wants_holdout
from data.paths import stored_paths
from data.sources import SourceOptions
from errors import UserError

# Class ids may leave out this many numbers for each that occurs; with more gaps they are no ids.
MOST_GAPS = 100


class Media(NamedTuple):
    """A column of images or videos in a task's schema.

    Attributes:
        column: its name in the schema.
        feature: its type in the schema.
        what: "images" or "videos", for messages.
        option: the option that names the stored column.
        empty: further columns of the schema, for which data sets of the hub have no values.
    """

    column: str
    feature: Any
    what: str
    option: str
    empty: Mapping[str, datasets.Value] = {}


def hub_name(dataset: str) -> str:
    """The id or path in ``hub:<id or path>``."""
    return dataset.partition(":")[2]


def open_hub(
    options: SourceOptions, *columns: str, label_column: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset, tuple[str, ...]]:
    """The training and validation split of a Hugging Face data set, and notes for the user.

    Args:
        options: ``dataset``, which is ``hub:`` and ``id`` or ``id:configuration`` on the hub, or a
            local path of what ``save_to_disk`` wrote or of anything that ``load_dataset`` reads;
            and what is held out where there is no split for validation.
        columns: that may hold the samples' files, whose names say which are held out.
        label_column: holds the class of each sample, if there is one.

    Raises:
        UserError: it can't be loaded, or has no split for training.
    """
    name = hub_name(options.dataset)
    splits = _load(name)
    cased = {split.lower(): split for split in splits}
    train_name = next((cased[split] for split in TRAIN if split in cased), None)
    val_name = next((cased[split] for split in VAL if split in cased), None)
    if train_name is None:
        raise UserError(
            f"{name} has no split train, only {', '.join(splits)}: choose another data set."
        )
    train = splits[train_name]
    holds_out = wants_holdout(options, name, val_name) or not val_name
    for split in (train_name, None if holds_out else val_name):
        if split and not len(splits[split]):
            raise UserError(f"The split {split} of {name} is empty: choose another data set.")
    if not holds_out:
        return train, splits[val_name], stand_in_note(name, val_name)
    labels = None
    if isinstance(train.features.get(label_column), datasets.Value | datasets.ClassLabel):
        labels = train[label_column][:]
    out = held_out(_names(train, name, columns), options, name, labels)
    note = holdout_note(options, name, int(out.sum()), len(train))
    return train.select(np.flatnonzero(~out)), train.select(np.flatnonzero(out)), note


def _names(rows: datasets.Dataset, where: str, columns: Sequence[str]) -> list[str]:
    """What each row is called: its file, where the column tells distinct ones, or its number."""
    for column in columns:
        paths = stored_paths(rows, column) if column in rows.column_names else None
        if paths and None not in paths and len(set(paths)) == len(paths):
            root = Path(where).expanduser().resolve()
            return [os.path.relpath(path, root) if os.path.isabs(path) else path for path in paths]
    return [str(number) for number in range(len(rows))]


def _load(name: str) -> dict[str, datasets.Dataset]:
    path = Path(name).expanduser()
    try:
        if path.exists():
            saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
            loaded = (datasets.load_from_disk if saved else datasets.load_dataset)(str(path))
        else:
            repository, _, configuration = name.partition(":")
            loaded = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # of any type: network, access rights, file formats, configurations
        reason = str(error).strip().partition("\n")[0].rstrip(".:")
        raise UserError(
            f"The data set {name} can't be loaded ({type(error).__name__}: {reason}): check its "
            "name or path, and whether the hub can be reached."
        ) from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def require_columns(rows: datasets.Dataset, name: str, columns: Mapping[str, str]) -> None:
    """Refuse a data set that lacks a column.

    Args:
        rows: a split.
        name: the data set's name, for messages.
        columns: the required columns, by the options that name them.

    Raises:
        UserError: a column is missing.
    """
    for option, column in columns.items():
        if column not in rows.column_names:
            raise UserError(
                f"{name} has no column {column}: choose one of {', '.join(rows.column_names)} "
                f"with {option}."
            )


def select_media(
    rows: datasets.Dataset, name: str, *columns: tuple[Media, str]
) -> datasets.Dataset:
    """The columns of images or videos alone, under their names and types in the schema.

    Args:
        rows: a split.
        name: the data set's name, for messages.
        columns: columns of the schema, each with the name of the data set's own.

    Raises:
        UserError: a column is missing or holds something else.
    """
    require_columns(rows, name, {media.option: column for media, column in columns})
    rows = rows.select_columns([column for _, column in columns])
    rows = rows.rename_columns({column: media.column for media, column in columns})
    for media, column in columns:
        try:
            rows = rows.cast_column(media.column, media.feature)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(
                f"The column {column} of {name} doesn't hold {media.what}: choose another with "
                f"{media.option}."
            ) from error
    return rows


def classes_of(rows: datasets.Dataset, name: str, label_column: str) -> list[str]:
    """The class names that a column of labels declares, or else the values that it holds.

    Raises:
        UserError: it holds no labels.
    """
    feature = rows.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    kind = getattr(feature, "dtype", "")
    if kind not in ("string", "large_string") and not kind.startswith(("int", "uint", "float")):
        raise UserError(
            f"The column {label_column} of {name} holds no labels but {kind or feature}: choose "
            "another with --label_column."
        )
    values = {_label(value) for value in rows[label_column][:] if value is not None}
    if "string" in kind:
        return sorted(values, key=by_number)
    wrong = next((v for v in values if isinstance(v, float) or v < 0), None)
    if wrong is not None:
        remedy = "leave such samples out with --skip_unlabelled, or choose another column"
        raise UserError(
            f"The column {label_column} of {name} holds {wrong}, which is no label: {remedy}."
        )
    largest = max(values, default=-1)
    if largest < MOST_GAPS * max(1, len(values)):
        return [f"class {number}" for number in range(largest + 1)]
    raise UserError(
        f"The column {label_column} of {name} holds {len(values)} numbers up to {largest}, "
        "which are no class ids from 0 on: choose another with --label_column."
    )


def _label(label: Any) -> Any:
    """A label; a whole number in any notation is one label: 3.0 is 3, and "3.0" is "3"."""
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return label_text(label) if isinstance(label, str) else label


def labelled_only(
    splits: Sequence[datasets.Dataset], name: str, label_column: str
) -> tuple[list[datasets.Dataset], tuple[str, ...]]:
    """The rows that have a label, neither None nor -1, which stands for none; and a note."""
    kept = []
    for rows in splits:
        labels = rows[label_column][:]
        there = [n for n, value in enumerate(labels) if value is not None and _label(value) != -1]
        kept.append(rows if len(there) == len(rows) else rows.select(there))
    left_out = sum(map(len, splits)) - sum(map(len, kept))
    note = f"{name}: {left_out} samples without a label are left out."
    return kept, (note,) if left_out else ()


def class_ids(
    rows: datasets.Dataset, name: str, label_column: str, classes: Sequence[str]
) -> list[int]:
    """The position in ``classes`` of each row's label.

    Raises:
        UserError: a row has no label, or one that is none of the classes.
    """
    feature = rows.features[label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else classes
    numbers = {label: number for number, label in enumerate(classes)}
    labels = [_label(label) for label in rows[label_column][:]]
    ids = []
    for sample, label in enumerate(labels):
        named = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
        if label is None:
            raise UserError(
                f"The column {label_column} of {name} has no label for sample {sample}: choose "
                "another column, or leave out the samples without one."
            )
        if named not in numbers:
            raise UserError(
                f"The column {label_column} of {name} holds the label {named}, which is none of "
                f"its {len(classes)} classes: choose another column or a split with labels."
            )
        ids.append(numbers[named])
    return ids


def labelled(
    rows: datasets.Dataset,
    name: str,
    media: Media,
    media_column: str,
    label_column: str,
    classes: Sequence[str],
) -> datasets.Dataset:
    """The images or videos with a column ``label``, and the schema's further columns.

    Args:
        rows: a split.
        name: the data set's name, for messages.
        media: the schema's column of images or videos.
        media_column: the data set's column of them.
        label_column: the data set's column of labels.
        classes: the names of the classes.

    Raises:
        UserError: the columns hold something else.
    """
    ids = class_ids(rows, name, label_column, classes)
    rows = select_media(rows, name, (media, media_column))
    new = {"label": (ids, datasets.ClassLabel(names=list(classes)))}
    return _with_columns(rows, new | {name: (None, kind) for name, kind in media.empty.items()})


def _with_columns(
    rows: datasets.Dataset, new: Mapping[str, tuple[Sequence[int] | None, Any]]
) -> datasets.Dataset:
    """The same rows with more columns, each given by its values (None for no values) and type."""
    indices = rows._indices  # the rows of the table that are in the data set; None for all
    places = range(len(rows)) if indices is None else indices.column(0).to_pylist()
    columns = {}
    for name, (values, feature) in new.items():
        stored: list[int | None] = [None] * len(rows.data)
        for place, value in zip(places, values or (), strict=values is not None):
            stored[place] = value
        columns[name] = pa.array(stored, feature.pa_type)
    return datasets.Dataset(
        concat_tables([rows.data, InMemoryTable(pa.table(columns))], axis=1),
        info=datasets.DatasetInfo(
            features=datasets.Features(
                {**rows.features, **{name: feature for name, (_, feature) in new.items()}}
            )
        ),
        indices_table=indices,
        # Given, because computing it would read all data.
        fingerprint=uuid.uuid4().hex,
    )
