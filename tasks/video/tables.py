"""Tables of labelled videos: those of Kinetics, and a simpler kind for anything else."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from data.faults import Faults
from data.paths import resolve
from data.textfiles import read_text
from errors import UserError

# Path, label, start and end in seconds.
Row = tuple[str, str, float | None, float | None]


def read_kinetics(
    table: Path, root: Path, videos: Mapping[str, Path], faults: Faults
) -> tuple[list[Row], int]:
    """Read a table with one of two headers.

    - ``label,youtube_id,time_start,time_end,...``, as Kinetics is published. A video is found by
      its name in any folder: ``<id>_<start>_<end>`` with six digits each holds the part alone,
      ``<id>`` the whole video. Many can't be downloaded any more; missing ones are counted.
    - ``label,file[,start,end]`` with paths relative to the data folder; an empty start or end is
      that of the whole video.

    Args:
        table: the CSV file.
        root: the data folder.
        videos: the videos below it, by name without suffix.
        faults: gets the named files that are missing.

    Returns:
        The rows, and the number of videos that weren't found.

    Raises:
        UserError: the header is a different one, a cell can't be read, or no row is left.
    """
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""), skipinitialspace=True)
    rows, missing = [], 0
    try:
        find = _layout(set(reader.fieldnames or ()), table)
        for line in reader:
            with faults.of(table, f"line {reader.line_num}"):
                row = find(line, root, videos)
                if row is None:
                    missing += 1
                else:
                    rows.append(row)
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        number = reader.line_num + isinstance(
            error, csv.Error
        )  # the reader doesn't count such a line
        raise UserError(
            f"Line {number} of {table} can't be read: it must hold a label, a video and times in "
            "seconds."
        ) from None
    if not rows:
        raise UserError(
            f"{table} names no video that is below {root}: put the videos there, under the names "
            "in the table."
        )
    return rows, missing


def _layout(header: set[str], table: Path) -> Callable[..., Row | None]:
    """The function that finds the video of a line under this header."""
    if {"label", "youtube_id", "time_start", "time_end"} <= header:
        return _published
    if {"label", "file"} <= header:
        return _simple
    raise UserError(
        f"The first line of {table} names neither label,youtube_id,time_start,time_end nor "
        "label,file: give it one of these headers."
    )


def _published(line: dict[str, str], _: Path, videos: Mapping[str, Path]) -> Row | None:
    name, label = line["youtube_id"].strip(), line["label"].strip()
    start, end = float(line["time_start"]), float(line["time_end"])
    part = videos.get(f"{name}_{int(start):06d}_{int(end):06d}")
    if part:
        return str(part), label, None, None
    return (str(videos[name]), label, start, end) if name in videos else None


def _simple(line: dict[str, str], root: Path, _: Mapping[str, Path]) -> Row:
    name = line["file"].strip()
    path = resolve(name, [root])
    if path is None:
        raise UserError(f"{root / name} is missing, although a table names it: restore it.")
    start, end = (line.get(column) for column in ("start", "end"))
    return (
        str(path),
        line["label"].strip(),
        float(start) if start and start.strip() else None,
        float(end) if end and end.strip() else None,
    )
