"""Sources of video data: each function finds the videos and classes of one layout.

The layouts are described in docs/data.md. Nothing is decoded here.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from data.class_lists import require_classes
from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, TRAIN, VAL, data_root, stand_in_note
from data.hub import Media, class_ids, classes_of, hub_name, labelled, open_hub, require_columns
from data.sources import load_from
from data.textfiles import read_text
from errors import UserError
from tasks.video import synthetic
from tasks.video.decoding.open import OpenVideo, open_video
from tasks.video.options import VideoOptions
from tasks.video.tables import read_kinetics

VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"}
COLUMN = datasets.Video(decode=False)
SECONDS = datasets.Value("float64")


@dataclass(frozen=True)
class VideoData:
    """A video data set.

    Attributes:
        train: rows with the columns video (path or bytes), label, start and end (seconds or None).
        val: the same for evaluation.
        classes: names of the labels 0..n-1.
        notes: sentences about choices made here that a user should see.
        open: opens a cell of the column video.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    notes: tuple[str, ...] = ()
    open: OpenVideo = open_video


@dataclass(frozen=True)
class Clip:
    """A labelled video, or a part of one: ``start`` to ``end`` in seconds."""

    path: str | None
    label: str
    start: float | None = None
    end: float | None = None


def load_data(options: VideoOptions, faults: Faults | None = None) -> VideoData:
    """Find the data set that the options name; nothing is decoded yet.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    return load_from(SOURCES, options, faults)


def load_synthetic(options: VideoOptions, faults: Faults) -> VideoData:
    """Shapes whose motion is the class, drawn when they are read."""
    videos, classes = synthetic.SyntheticVideos(options.seed), list(synthetic.CLASSES)
    splits = []
    for split in ("train", "val"):
        labels = videos.labels(split)
        clips = [Clip(videos.path(split, i), classes[label]) for i, label in enumerate(labels)]
        splits.append(_rows(clips, classes))
    return VideoData(*splits, classes, open=videos.open)


def load_folder(options: VideoOptions, faults: Faults) -> VideoData:
    """<split>/<class>/<video file>, or <split>/<class>/<folder of frames>."""
    expected = "train/<class>/<videos> and val/<class>/<videos>"
    root = data_root(options, expected)
    splits = []
    for names in (TRAIN, VAL):
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{root} has no folder {names[0]}: it must hold {expected}.")
        kinds = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        kinds = {path: _videos_below(path) for path in kinds if not path.name.startswith(".")}
        clips = [Clip(str(path), kind.name) for kind, paths in kinds.items() for path in paths]
        if not clips:
            raise UserError(f"{folder} holds no videos: put them into {folder}/<class>.")
        empty = next((kind for kind, paths in kinds.items() if not paths), None)
        if empty and names is TRAIN:
            raise UserError(
                f"There are no videos in {empty}: put the class's videos there, or remove the "
                "folder."
            )
        splits.append(clips)
    return _data(*splits, str(root), notes=stand_in_note(root, folder.name))


def load_ucf101(options: VideoOptions, faults: Faults) -> VideoData:
    """UCF101 and its official lists of three splits."""
    expected = "classInd.txt, trainlist01.txt, testlist01.txt and a folder of the videos"
    root = data_root(options, expected)
    lists = [root, *(folder for folder in sorted(root.iterdir()) if folder.is_dir())]
    split = options.split
    names = ("classInd.txt", f"trainlist{split:02d}.txt", f"testlist{split:02d}.txt")
    folder = next((f for f in lists if all((f / name).is_file() for name in names)), None)
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
        base = next((f for f in lists if videos and (f / videos[0]).is_file()), None)
        missing = next((v for v in videos if base and not (base / v).is_file()), None)
        if base is None or missing:
            raise UserError(
                f"{missing or next(iter(videos), 'A video')} is not below {base or root}, although "
                f"{folder / name} names it: unpack the videos there."
            )
        for video, *number in listed:
            kind = Path(video).parts[0]
            if number and number[0] != numbers.get(kind, number[0]):
                raise UserError(
                    f"{folder / name} gives {video} the class {number[0]}, but {kind} has the "
                    f"number {numbers[kind]} in {names[0]}: take both files from the same release."
                )
        splits.append([Clip(str(base / video), Path(video).parts[0]) for video in videos])
    return _data(*splits, str(folder), list(numbers))


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
    """The words of each line that is not blank."""
    return [line.split() for line in read_text(file).splitlines() if line.strip()]


def load_kinetics(options: VideoOptions, faults: Faults) -> VideoData:
    """Tables of videos, train.csv and val.csv, in the layout of Kinetics or a simpler one."""
    expected = "train.csv, val.csv and the videos"
    root = data_root(options, expected)
    files: dict[str, Path] = {}
    for path in _videos_below(root):
        files.setdefault(path.stem, path)
    splits, notes = [], []
    for names in (TRAIN, VAL):
        places = (root / folder / f"{n}.csv" for n in names for folder in ("", "annotations", n))
        table = next((place for place in places if place.is_file()), None)
        if table is None:
            raise UserError(f"{root} has no {names[0]}.csv: it must hold {expected}.")
        rows, missing = read_kinetics(table, root, files)
        splits.append([Clip(*row) for row in rows])
        notes += stand_in_note(root, table.stem)
        if missing:
            notes.append(
                f"{missing} videos of {table} are left out, since they are not below {root}."
            )
    return _data(*splits, str(root), notes=tuple(notes))


def load_hub(options: VideoOptions, faults: Faults) -> VideoData:
    """A data set of the Hugging Face hub, or a local copy of one."""
    *splits, notes = open_hub(options, options.video_column)
    name, label_column = hub_name(options.dataset), options.label_column
    video_column = options.video_column
    for rows in splits:
        wanted = {"--video_column": video_column, "--label_column": label_column}
        require_columns(rows, name, wanted)
    classes = classes_of(splits[0], name, label_column)
    require_classes(classes, name)
    train, val = (_hub_rows(rows, name, video_column, label_column, classes) for rows in splits)
    return VideoData(train, val, classes, notes)


SOURCES: dict[str, Callable[[VideoOptions, Faults], VideoData]] = {
    "synthetic": load_synthetic,
    "folder": load_folder,
    "ucf101": load_ucf101,
    "kinetics": load_kinetics,
    "hub": load_hub,
}


def _hub_rows(
    rows: datasets.Dataset, name: str, video_column: str, label_column: str, classes: list[str]
) -> datasets.Dataset:
    if rows.features[video_column] != datasets.Value("string"):
        empty = {"start": SECONDS, "end": SECONDS}
        media = Media("video", COLUMN, "videos", "--video_column", empty)
        return labelled(rows, name, media, video_column, label_column, classes)
    folder = Path(name).expanduser()  # of a local data set, with paths relative to it
    paths = rows[video_column][:]
    if folder.is_dir():
        paths = [None if path is None else str(folder / path) for path in paths]
    ids = class_ids(rows, name, label_column, classes)
    return _rows([Clip(path, classes[i]) for path, i in zip(paths, ids, strict=True)], classes)


def _videos_below(folder: Path) -> list[Path]:
    """Video files and folders of frames below a folder, sorted."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(place, name) for name in files if not name.startswith(".")]
        found += [path for path in files if path.suffix.lower() in VIDEOS]
        if Path(place) != folder and any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
            found.append(Path(place))
    return sorted(found)


def _data(
    train: Sequence[Clip],
    val: Sequence[Clip],
    where: str,
    classes: list[str] | None = None,
    notes: tuple[str, ...] = (),
) -> VideoData:
    """Rows of the clips; the classes, unless given, are those of the training clips, sorted."""
    if classes is None:
        classes = sorted({clip.label for clip in train})
    require_classes(classes, where)
    unknown = next((clip for clip in (*train, *val) if clip.label not in classes), None)
    if unknown:
        raise UserError(
            f"{unknown.path} is of the class {unknown.label}, but no training video in {where} is: "
            "correct its class, or remove it."
        )
    return VideoData(_rows(train, classes), _rows(val, classes), classes, notes)


def _schema(classes: list[str]) -> datasets.Features:
    label = datasets.ClassLabel(names=classes)
    return datasets.Features({"video": COLUMN, "label": label, "start": SECONDS, "end": SECONDS})


def _rows(clips: Sequence[Clip], classes: list[str]) -> datasets.Dataset:
    columns = {
        "video": [clip.path for clip in clips],
        "label": [clip.label for clip in clips],  # encoded by the schema
        "start": [clip.start for clip in clips],
        "end": [clip.end for clip in clips],
    }
    return datasets.Dataset.from_dict(columns, features=_schema(classes))
