"""Large indexes are built once per machine and then opened from a cache, shared by all processes.

What a source makes of annotation files is stored as Arrow files, which processes map into memory
together. An entry belongs to the exact state of the data: the options that choose them, the path,
size and time of change of every file below the folder, and the code that reads them. When one of
them changes, the index is built anew and takes the old one's place.

The entries are in ``index`` in the cache of Hugging Face's datasets: ~/.cache/huggingface/datasets,
or where HF_DATASETS_CACHE or HF_HOME says. Any of them may be deleted at any time.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
from filelock import FileLock, Timeout

from data.collector import collector_paused
from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, files_below
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData

Load = Callable[[DetectionOptions, Faults], DetectionData]

# Annotations of fewer bytes are read more quickly than a cache is worth.
SMALL = 8 * 2**20
# Another process that builds the same index is waited for so many seconds.
LONGEST_BUILD = 1800.0
SPLITS = ("train", "val")
ROWS = 1000  # of a piece of a file; reading a row opens its piece
CODE = Path(__file__).resolve().parent.parent.parent
# Options of the group "data" that choose nothing, or choose among the rows of the index.
WITHOUT_EFFECT = {
    *("data_dir", "limit_train", "limit_val", "num_workers", "check_data", "balance_classes"),
    *("allow_changed_data", "compare_contents"),
}


def in_cache(load: Load, reaches_outside: Callable[[Path], bool] = lambda root: False) -> Load:
    """A source whose result is kept for later runs with the same options and files.

    Args:
        load: reads the folder ``options.data_dir``.
        reaches_outside: whether the data in a folder name other files elsewhere, of which no
            change would be noticed.

    Returns:
        A function with the same arguments and result.
    """

    @functools.wraps(load)
    def load_or_open(options: DetectionOptions, faults: Faults) -> DetectionData:
        folder = options.data_dir and Path(options.data_dir).expanduser()
        if not folder or not folder.is_dir() or options.check_data:
            return load(options, faults)
        root = folder.resolve()
        with collector_paused():
            files = list(_files(root))
            small = sum(file.size for file in files if not file.is_image) < SMALL
            if small or reaches_outside(root):
                return load(options, faults)
            entry = _place(options, root, files)
            with _alone(entry):
                data = _open(entry)
                if data is None:
                    data = load(options, faults)
                    if not faults.found and _lies_in(root, data):
                        data = _store(entry, data)
        return data

    return load_or_open


class _File(NamedTuple):
    """A file's path, bytes and time of change in nanoseconds."""

    path: str
    size: int
    changed: int

    @property
    def is_image(self) -> bool:
        return os.path.splitext(self.path)[1].lower() in IMAGE_SUFFIXES


def _files(root: Path) -> Iterator[_File]:
    """Every file below a folder; what can't be read is reported by the source."""
    for path in files_below(root, Faults()):
        with contextlib.suppress(OSError):  # a link to nothing
            status = path.stat()
            yield _File(os.fspath(path), status.st_size, status.st_mtime_ns)


def _place(options: DetectionOptions, root: Path, files: list[_File]) -> Path:
    """The entry's folder: named by what is asked for, and within it by the state of the data."""
    chosen = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.metadata["group"] == "data" and field.name not in WITHOUT_EFFECT
    }
    chosen |= {"seed": options.seed, "masks": options.needs_masks}
    asked = json.dumps([str(root), options.data_dir, chosen], sort_keys=True)
    state = hashlib.sha256(datasets.__version__.encode())
    code = [*CODE.glob("data/*.py"), *CODE.glob("tasks/detection/**/*.py")]
    # A list of classes may lie anywhere.
    named = [Path(value).expanduser() for value in chosen.values() if isinstance(value, str)]
    for file in sorted(code) + [file for file in named if file.is_file()]:
        state.update(file.read_bytes())
    state.update(repr(files).encode(errors="surrogateescape"))
    base = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "index"
    return base / hashlib.sha256(asked.encode()).hexdigest()[:16] / state.hexdigest()[:32]


@contextlib.contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """While one process builds an index, the others that want it wait.

    Where there is no place for a lock, every process builds its own.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, Timeout, NotImplementedError):
            entry.parent.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{entry.parent}.lock", timeout=LONGEST_BUILD))
        yield


def _lies_in(root: Path, data: DetectionData) -> bool:
    """Whether all images are found below the folder: of others no change would be noticed."""
    folders = {
        os.path.dirname(cell["path"] or "")
        for rows in (data.train, data.val)
        for cell in rows.data.column("image").to_pylist()
    }
    places = [Path(folder).resolve() for folder in folders if folder]
    if not all(place.is_relative_to(root) for place in places):
        return False
    return not any(part[0] == "." for place in places for part in place.relative_to(root).parts)


def _store(entry: Path, data: DetectionData) -> DetectionData:
    """Write an entry, complete or not at all, and open it; without a place for it, the data."""
    unfinished = entry.parent / uuid.uuid4().hex
    try:
        shutil.rmtree(entry.parent, ignore_errors=True)  # of an earlier state of the data
        unfinished.mkdir(parents=True)
        for name in SPLITS:
            _write(getattr(data, name), unfinished / f"{name}.arrow")
        rest = {name: getattr(data, name) for name in ("classes", "colors", "notes")}
        (unfinished / "rest.json").write_text(json.dumps(rest))
        unfinished.rename(entry)
    except OSError:  # a full disk, a folder that can't be written to
        shutil.rmtree(unfinished, ignore_errors=True)
    return _open(entry) or data


def _write(rows: datasets.Dataset, file: Path) -> None:
    """Write rows as they are; ``save_to_disk`` would copy every image into the file."""
    table = rows.with_format("arrow")[:].cast(rows.features.arrow_schema)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=ROWS)


def _open(entry: Path) -> DetectionData | None:
    """The data of an entry; None where there is none, or not a whole one any more."""
    try:
        rest = json.loads((entry / "rest.json").read_text())
        train, val = (datasets.Dataset.from_file(str(entry / f"{name}.arrow")) for name in SPLITS)
        colors = [tuple(color) for color in rest["colors"]]
        return DetectionData(train, val, rest["classes"], colors, tuple(rest["notes"]))
    except (OSError, ValueError, LookupError):  # ArrowInvalid is a ValueError
        return None
