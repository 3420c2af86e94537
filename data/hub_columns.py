"""Labelled pictures and videos of the hub's data sets, in the project's schema without a copy.

``Dataset.cast`` and ``Dataset.add_column`` can write all pictures or videos anew, into the user's
own folder and once per process. Here the media stay where they are, and only the labels are new.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable, concat_tables

from errors import UserError

# Class ids may leave out so many for each that occurs; more, and they are something else.
MOST_GAPS = 100


class Media(NamedTuple):
    """A schema's column of pictures or videos.

    Attributes:
        column: its name; the option that says where it is found is this with ``_column``.
        feature: its type.
        what: the plural, for messages.
        empty: further columns of the schema that the hub's data sets have nothing for.
    """

    column: str
    feature: Any
    what: str
    empty: Mapping[str, datasets.Value] = {}


def require_columns(rows: datasets.Dataset, name: str, columns: Mapping[str, str]) -> None:
    """Refuse a data set without these columns, given by the options that name them."""
    for option, column in columns.items():
        if column not in rows.column_names:
            raise UserError(
                f"{name} has no column {column}: name one of {', '.join(rows.column_names)} "
                f"with {option}."
            )


def classes_of(rows: datasets.Dataset, name: str, label_column: str) -> list[str]:
    """The names that the column declares, or those of the values that it holds.

    Raises:
        UserError: it holds no labels.
    """
    feature = rows.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    kind = getattr(feature, "dtype", "")
    is_text = kind in ("string", "large_string")
    if not is_text and not kind.startswith(("int", "uint")):
        raise UserError(
            f"The column {label_column} of {name} holds no labels but {kind or feature}: choose "
            "another with --label_column."
        )
    values = {value for value in rows[label_column][:] if value is not None}
    if is_text:
        return sorted(values)
    largest = max(values, default=-1)
    if largest < MOST_GAPS * max(1, len(values)):
        return [f"class {number}" for number in range(largest + 1)]
    raise UserError(
        f"The column {label_column} of {name} holds {len(values)} numbers up to {largest}, "
        "which are no class ids from 0 on: choose another with --label_column."
    )


def class_ids(
    rows: datasets.Dataset, name: str, label_column: str, classes: Sequence[str]
) -> list[int]:
    """The number in ``classes`` of each row's label.

    Raises:
        UserError: a row has none, or one that is no class.
    """
    feature = rows.features[label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else classes
    numbers = {label: number for number, label in enumerate(classes)}
    labels = rows[label_column][:]
    ids = []
    for sample, label in enumerate(labels):
        named = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
        if label is None:
            raise UserError(
                f"The column {label_column} of {name} has no label for sample {sample}: choose "
                "another column, or remove the samples without one."
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
    """The column of media under its name in the schema, beside the others of the schema.

    Raises:
        UserError: the columns hold something else.
    """
    ids = class_ids(rows, name, label_column, classes)
    rows = rows.select_columns([media_column]).rename_columns({media_column: media.column})
    try:
        rows = rows.cast_column(media.column, media.feature)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"The column {media_column} of {name} doesn't hold {media.what}: choose another with "
            f"--{media.column}_column."
        ) from error
    new = {"label": (ids, datasets.ClassLabel(names=list(classes)))}
    return _with_columns(rows, new | {name: (None, kind) for name, kind in media.empty.items()})


def _with_columns(
    rows: datasets.Dataset, new: Mapping[str, tuple[Sequence[int] | None, Any]]
) -> datasets.Dataset:
    """The same rows with more columns, each given by its values (None for no values) and type."""
    indices = rows._indices  # which rows of the table are meant; None for all
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
        # Given, since computing one reads all data, which nothing here needs.
        fingerprint=uuid.uuid4().hex,
    )
