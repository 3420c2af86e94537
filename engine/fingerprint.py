"""What a run is trained and validated on: a record of its samples, compared when it is resumed.

A sample's record is its name, the size of its files, and a digest of its label and annotations; on
request also one of the contents of its files. The record of all samples is ``data.tsv`` beside
config.yaml; a checkpoint holds its digest.
"""

import csv
import hashlib
import io
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator

from engine.collectives import gather_lists

SPLITS = ("train", "val")
NAMES = "surrogateescape"  # names of files may be any bytes
NAMED = 5  # samples that a message names, of each kind of change
DIGEST_BYTES = 8  # enough for billions of samples: they are compared, not defended
SYSTEM_LIMIT = 32  # threads that read files


class Sample(NamedTuple):
    """The record of a sample.

    Attributes:
        name: its file, relative to the data folder, or its number.
        size: bytes of its files together, "" where it has none.
        labels: digest of its label and annotations.
        contents: digest of its files' contents, or "".
    """

    name: str
    size: str
    labels: str
    contents: str


Record = dict[str, list[Sample]]


def record_data(
    accelerator: Accelerator, train: Any, val: Any, data_dir: str | None, contents: bool
) -> Record:
    """The records of the training and validation data, on the main process; {} on the others.

    Data sets have ``reader.rows``, as those of ``data.samples``, or ``name(index)`` and nothing
    else that could be compared.

    Args:
        accelerator: joined with the other processes.
        train: the training data.
        val: the validation data.
        data_dir: the data folder.
        contents: whether to read all files. The processes share them out: one alone could take
            longer than the others may wait in a collective (one per split).
    """
    root = data_dir and str(Path(data_dir).expanduser())
    share = accelerator.process_index, accelerator.num_processes
    record: Record = {}
    for split, data in zip(SPLITS, (train, val), strict=True):
        rows = getattr(getattr(data, "reader", None), "rows", None)
        read = gather_lists(contents_of(rows, *share)) if contents and rows is not None else None
        if not accelerator.is_main_process:
            continue
        if rows is None:
            record[split] = [Sample(data.name(index), "", "", "") for index in range(len(data))]
        else:
            record[split] = record_of(rows, root, read)
    return record


def record_of(
    rows: datasets.Dataset, root: str | None, contents: list[str] | None = None
) -> list[Sample]:
    """The records of a split's samples, in their order.

    A hundred thousand samples take about a second and as many ``stat`` calls.

    Args:
        rows: of the split. Columns of {"path", "bytes"} are files; the others are annotations.
        root: the data folder, below which names are relative to it.
        contents: the digests of what is in each sample's files, if they were read.
    """
    table, picked, media = rows.data.table, _picked(rows), _media(rows)
    others = [name for name in table.column_names if name not in media]
    labels = _label_digests(table.select(others), picked)
    columns = [_files(table.column(name), picked) for name in media]
    files = list(zip(*columns, strict=True)) if columns else [()] * len(rows)
    read = [""] * len(rows) if contents is None else contents
    return [
        Sample(_name(parts, root, number), _size(parts), label, content)
        for number, (parts, label, content) in enumerate(zip(files, labels, read, strict=True))
    ]


def contents_of(rows: datasets.Dataset, part: int, parts: int) -> list[str]:
    """The digests of what is in the files of one of equal parts of a split's samples.

    Reads them all. The lists of part 0, 1, ... joined are those of the whole split.
    """
    table, picked, media = rows.data.table, _picked(rows), _media(rows)
    first, end = (len(picked) * number // parts for number in (part, part + 1))
    cells = (_cells(table, media, row) for row in picked[first:end])
    with ThreadPoolExecutor(min(SYSTEM_LIMIT, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(_content_digest, cells))


def _media(rows: datasets.Dataset) -> list[str]:
    """The columns that are files."""
    table = rows.data.table
    return [name for name in table.column_names if _is_media(table.schema.field(name).type)]


def _picked(rows: datasets.Dataset) -> list[int]:
    """The numbers of the table's rows that the data set consists of."""
    if rows._indices is None:
        return list(range(len(rows)))
    return rows._indices.column(0).to_pylist()


def _is_media(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"path", "bytes"}


def _label_digests(table: pa.Table, picked: list[int]) -> list[str]:
    """A digest per picked row of all its columns; vectorised, for boxes are many."""
    if not table.num_columns:
        return [""] * len(picked)
    table = table.take(pa.array(picked, pa.int64())).combine_chunks()
    columns = [column.chunk(0) if len(table) else pa.array([]) for column in table.columns]
    return [f"{value:016x}" for value in _mixed_fields(columns, len(table)).tolist()]


def _hashes(values: pa.Array) -> np.ndarray:
    """A hash, uint64 (N,), of each of N values of any type."""
    kind = values.type
    if pa.types.is_struct(kind):
        return _mixed_fields(values.flatten(), len(values))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        mixed = _mix(_hashes(values.flatten()) + _mix(places.astype(np.uint64)))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
        return _mix(sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64))
    return pd.util.hash_array(values.to_numpy(zero_copy_only=False))


def _mixed_fields(fields: list[pa.Array], rows: int) -> np.ndarray:
    total = np.zeros(rows, np.uint64)
    for field in fields:
        total = _mix(total + _hashes(field))
    return total


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood, 2014): every bit of uint64 moves every other."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _files(column: pa.ChunkedArray, picked: list[int]) -> list[tuple[str | None, int | None]]:
    """Path and number of bytes of each cell; embedded files are not read."""
    paths: list[str | None] = []
    sizes: list[int | None] = []
    for chunk in column.chunks:
        paths += pc.struct_field(chunk, "path").to_pylist()
        sizes += pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
    return [(paths[row], sizes[row]) for row in picked]


def _name(files: tuple[tuple[str | None, int | None], ...], root: str | None, number: int) -> str:
    path = files[0][0] if files else None
    if not path:
        return f"sample {number}"
    return os.path.relpath(path, root) if root and path.startswith(root + os.sep) else path


def _size(files: tuple[tuple[str | None, int | None], ...]) -> str:
    sizes = [_stored_size(path) if size is None else size for path, size in files]
    known = [size for size in sizes if size is not None]
    return str(sum(known)) if known else ""


def _stored_size(path: str | None) -> int | None:
    """Bytes of a file, or of the files in a folder (the frames of a video)."""
    try:
        if path is None:
            return None
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
        with os.scandir(path) as entries:
            return sum(entry.stat().st_size for entry in entries)
    except OSError:  # no file at all, as with drawn data; a missing one is reported when it is read
        return None


def _cells(table: pa.Table, media: list[str], row: int) -> list[dict[str, Any]]:
    return [table.column(name)[row].as_py() or {"path": None, "bytes": None} for name in media]


def _content_digest(cells: list[dict[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for cell in cells:
        path = cell["path"]
        if cell["bytes"] is not None:
            digest.update(cell["bytes"])
        elif path and os.path.exists(path):
            folder = os.path.isdir(path)
            names = sorted(os.listdir(path)) if folder else [""]
            for name in names:
                with open(os.path.join(path, name) if folder else path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def digests_of(record: Record) -> dict[str, str]:
    """A digest of each split, for the checkpoints."""
    return {split: digest_of(samples) for split, samples in record.items()}


def digest_of(samples: list[Sample]) -> str:
    """One digest of a split's samples and their order, without their contents."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(_encoded("\t".join(sample[:3]) + "\n"))
    return digest.hexdigest()


def to_bytes(record: Record) -> bytes:
    """The content of data.tsv."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["split", *Sample._fields])
    for split, samples in record.items():
        writer.writerows([split, *sample] for sample in samples)
    return _encoded(text.getvalue())


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", NAMES)


def read_record(path: Path) -> Record | None:
    """What ``to_bytes`` made, or None where there is no such file."""
    record: Record = {split: [] for split in SPLITS}
    try:
        with open(path, encoding="utf-8", errors=NAMES, newline="") as file:
            for split, *values in list(csv.reader(file, delimiter="\t"))[1:]:
                record[split].append(Sample(*values))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return record


def without_contents(samples: list[Sample]) -> int:
    """How many samples have files whose contents were not recorded."""
    return sum(bool(sample.size) and not sample.contents for sample in samples)


def with_contents_of(before: list[Sample], now: list[Sample]) -> list[Sample]:
    """The record of now, with the contents of an earlier one where they weren't read now.

    Only for samples of the same name, size and labels.
    """
    known = {(*sample[:3], place): sample for sample, place in _numbered(before)}
    return [
        sample if sample.contents else known.get((*sample[:3], place), sample)
        for sample, place in _numbered(now)
    ]


def _numbered(samples: list[Sample]) -> Iterator[tuple[Sample, int]]:
    """The samples, each with its number among those of its name."""
    seen: Counter[str] = Counter()
    for sample in samples:
        yield sample, seen[sample.name]
        seen[sample.name] += 1


def differences(before: list[Sample], now: list[Sample]) -> list[str]:
    """What differs between two records of a split, each kind in a phrase that names samples.

    Contents are compared where both records have them.
    """
    old, new = _by_name(before), _by_name(now)
    kinds: dict[str, list[str]] = {"gone": [], "new": [], "of another size": []}
    kinds |= {"labelled or annotated otherwise": [], "of other contents": []}
    for name in old:
        if name not in new:
            kinds["gone"].append(name)
            continue
        for kind, field in zip(list(kinds)[2:], ("size", "labels", "contents"), strict=True):
            then, today = ([getattr(s, field) for s in side[name]] for side in (old, new))
            if then != today and not (field == "contents" and "" in then + today):
                kinds[kind].append(name)
    kinds["new"] = [name for name in new if name not in old]
    found = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if not found and [s.name for s in before] != [s.name for s in now]:
        return ["the same samples in another order"]
    return found


def _by_name(samples: list[Sample]) -> dict[str, list[Sample]]:
    """Several samples may be parts of one file."""
    named = defaultdict(list)
    for sample in samples:
        named[sample.name].append(sample)
    return named


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
