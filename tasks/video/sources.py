"""Sources of video data: each function finds the videos and classes of one layout.

The layouts are described in docs/data.md. Nothing is decoded here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets

from data.class_lists import require_classes
from data.faults import Faults
from data.folders import (
    TRAIN,
    VAL,
    data_root,
    left_out_note,
    named,
    split_folder,
    stand_in_note,
    subfolders,
)
from data.holdout import wants_holdout
from data.hub import (
    Media,
    class_ids,
    classes_of,
    hub_name,
    labelled,
    labelled_only,
    open_hub,
    require_columns,
)
from data.notes import class_notes, label_counts
from data.paths import resolve
from data.sources import load_from
from errors import UserError
from tasks.video import synthetic
from tasks.video.files import find_videos
from tasks.video.lists import load_hmdb51, load_list, load_ucf101
from tasks.video.options import VideoOptions
from tasks.video.rows import COLUMN, SECONDS, Clip, VideoData, make_data, to_rows
from tasks.video.tables import read_kinetics


def load_data(options: VideoOptions, faults: Faults | None = None) -> VideoData:
    """Find the data set that the options name; nothing is decoded yet.

    Raises:
        UserError: there is no such data set, or it isn't in the layout expected.
    """
    data = load_from(SOURCES, options, faults)
    train, val = (label_counts(rows, data.classes) for rows in (data.train, data.val))
    more = class_notes(data.classes, train, val, "video")
    return replace(data, notes=data.notes + more)


def load_synthetic(options: VideoOptions, faults: Faults) -> VideoData:
    """Shapes whose motion is the class, drawn when they are read."""
    videos, classes = synthetic.SyntheticVideos(options.seed), list(synthetic.CLASSES)
    splits = []
    for split in ("train", "val"):
        labels = videos.labels(split)
        clips = [Clip(videos.path(split, i), classes[label]) for i, label in enumerate(labels)]
        splits.append(to_rows(clips, classes))
    return VideoData(*splits, classes, open=videos.open)


def load_folder(options: VideoOptions, faults: Faults) -> VideoData:
    """<split>/<class>/<video file>, or <split>/<class>/<folder of frames>."""
    expected = "train/<class>/<videos> and val/<class>/<videos>"
    root = data_root(options, expected)
    train, val = (split_folder(root, names) for names in (TRAIN, VAL))
    if wants_holdout(options, root, val and val.name):
        train, val = train or root, None
    elif train is None or val is None:
        one = "" if train is None and not subfolders(root) else ", or give --val_share 0.1"
        raise UserError(
            f"{root} has no folder {(TRAIN if train is None else VAL)[0]}: it must hold "
            f"{expected}{one}."
        )
    splits, notes = [], stand_in_note(root, val.name) if val else ()
    for folder in filter(None, (train, val)):
        clips, left_out, empty = [], [], []
        for kind in subfolders(folder):
            found = find_videos(kind, faults)
            clips += [Clip(str(path), kind.name) for path in found.files]
            left_out += found.left_out
            empty += [] if found.files else [kind]
        if not clips:
            raise UserError(f"{folder} holds no videos: put them into {folder}/<class>.")
        if empty and folder == train:
            raise UserError(
                f"There are no videos in {empty[0]}: put the class's videos there, or remove the "
                "folder."
            )
        notes += left_out_note(folder, left_out, "videos")
        splits.append(clips)
    return make_data(options, splits[0], splits[1] if val else None, root, notes=notes)


def load_kinetics(options: VideoOptions, faults: Faults) -> VideoData:
    """Tables of videos, train.csv and val.csv, in the layout of Kinetics or a simpler one."""
    expected = "train.csv, val.csv and the videos"
    root = data_root(options, expected)
    files: dict[str, Path] = {}
    for path in find_videos(root, faults).files:
        files.setdefault(path.stem, path)
    train, val = (_table(root, names) for names in (TRAIN, VAL))
    if wants_holdout(options, root, val and val.stem):
        val = None
    elif val is None:
        raise UserError(
            f"{root} has no {VAL[0]}.csv: it must hold {expected}, or give --val_share 0.1."
        )
    if train is None:
        raise UserError(f"{root} has no {TRAIN[0]}.csv: it must hold {expected}.")
    splits, notes = [], stand_in_note(root, val.stem) if val else ()
    for table in filter(None, (train, val)):
        rows, missing = read_kinetics(table, root, files, faults)
        splits.append([Clip(*row) for row in rows])
        if missing:
            notes += (
                f"{missing} videos of {table} are left out, since they are not below {root}.",
            )
    return make_data(options, splits[0], splits[1] if val else None, root, notes=notes)


def _table(root: Path, names: tuple[str, ...]) -> Path | None:
    """The table of a split: in the data folder, in ``annotations``, or in the split's folder."""
    annotations = named(root, ["annotations"])
    for name in names:
        for folder in (root, annotations, named(root, [name])):
            if folder and (file := named(folder, [name], ".csv")):
                return file
    return None


def load_hub(options: VideoOptions, faults: Faults) -> VideoData:
    """A data set of the Hugging Face hub, or a local copy of one."""
    *splits, notes = open_hub(options, options.video_column, label_column=options.label_column)
    name, label_column = hub_name(options.dataset), options.label_column
    video_column = options.video_column
    for rows in splits:
        wanted = {"--video_column": video_column, "--label_column": label_column}
        require_columns(rows, name, wanted)
    if options.skip_unlabelled:
        splits, more = labelled_only(splits, name, label_column)
        notes += more
    classes = classes_of(splits[0], name, label_column)
    require_classes(classes, name)
    train, val = (_hub_rows(rows, name, video_column, label_column, classes) for rows in splits)
    return VideoData(train, val, classes, notes)


SOURCES: dict[str, Callable[[VideoOptions, Faults], VideoData]] = {
    "synthetic": load_synthetic,
    "folder": load_folder,
    "ucf101": load_ucf101,
    "kinetics": load_kinetics,
    "hmdb51": load_hmdb51,
    "list": load_list,
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
        paths = [path and str(resolve(path, [folder]) or folder / path) for path in paths]
    ids = class_ids(rows, name, label_column, classes)
    return to_rows([Clip(path, classes[i]) for path, i in zip(paths, ids, strict=True)], classes)
