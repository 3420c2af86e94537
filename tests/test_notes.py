"""What a run says of its data at the start."""

from dataclasses import replace
from pathlib import Path

import datasets

from data.notes import class_notes, label_counts, shared_note, some_of
from data.sources import load_from
from tasks.classification.options import ClassificationOptions
from tasks.classification.rows import rows
from tasks.classification.sources import load_data
from tasks.video.rows import Clip, to_rows

CLASSES = ["a", "b", "c", "d", "e"]


def test_classes_that_cannot_be_scored_or_learned():
    assert class_notes(CLASSES[:2], [1, 2], [2, 1], "image") == ()
    absent, unknown = class_notes(CLASSES, [3, 1, 1, 1, 0], [0, 0, 0, 0, 2], "object")
    assert absent == (
        "val: 4 of 5 classes have no object, and count in no mean: a, b, c and others."
    )
    assert unknown == ("val: 1 of 5 classes occur in validation alone, and can't be learned: e.")
    assert some_of(["x"]) == "x"


def test_labels_are_counted_also_in_a_selection():
    made = rows([f"{n}.jpg" for n in range(6)], [0, 0, 2, 2, 2, 4], CLASSES)
    assert label_counts(made, CLASSES).tolist() == [2, 0, 3, 0, 1]
    assert label_counts(made.select([5, 2]), CLASSES).tolist() == [0, 0, 1, 0, 1]
    assert label_counts(made.select([]), CLASSES).tolist() == [0] * 5


def test_a_class_without_validation_samples_is_named_for_every_source():
    data = load_data(ClassificationOptions(dataset="synthetic", limit_val=1, image_size=[8, 8]))
    (note,) = data.notes
    assert note.startswith("val: 5 of 6 classes have no image, and count in no mean: ")


def images(*paths: Path, files=None) -> datasets.Dataset:
    return rows([str(path) for path in paths], [0] * len(paths), CLASSES, files)


def test_validation_files_that_are_training_files(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(tmp_path / "train")
    (tmp_path / "other").mkdir()
    train = images(*(tmp_path / f"train/{n}.jpg" for n in range(3)))
    val = images(*(tmp_path / f"{n}.jpg" for n in ("other/0", "val/2", "other/../val/1")))
    (note,) = shared_note(train, val)
    assert note.startswith("2 of 3 validation files are training files too")
    assert note.endswith(f"(first: {tmp_path}/val/2.jpg).")
    assert shared_note(train.select([0]), val) == ()
    assert shared_note(train, val.select([])) == ()


def test_what_is_in_memory_is_no_file(tmp_path):
    held = images(tmp_path / "0.jpg", files=[b"x"])
    assert shared_note(held, held) == ()
    assert shared_note(images(tmp_path / "0.jpg"), held) == ()


def test_parts_of_one_video_are_of_one_file(tmp_path):
    parts = [Clip(str(tmp_path / "a.mp4"), "a", float(n), n + 1.0) for n in range(2)]
    (note,) = shared_note(*(to_rows([part], CLASSES) for part in parts))
    assert note.startswith("1 of 1 validation files")


def test_every_source_is_compared(tmp_path):
    data = load_data(ClassificationOptions(dataset="fake", image_size=[8, 8]))
    same = images(tmp_path / "0.jpg")
    options = ClassificationOptions(dataset="fake")
    found = load_from({"fake": lambda *_: replace(data, train=same, val=same)}, options, None)
    assert "1 of 1 validation files" in found.notes[0]
