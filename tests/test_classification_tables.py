"""Classification data in folders and tables as users have them."""

from pathlib import Path

import datasets
import pytest

from errors import UserError
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import load_data
from tests.test_data import is_one_sentence, save_image


def load(dataset: str, root: Path, **given):
    return load_data(ClassificationOptions(dataset=dataset, data_dir=str(root), **given))


def names(rows) -> list[str]:
    return sorted(Path(cell["path"]).name for cell in rows["image"][:])


def write(root: Path, *paths: str) -> Path:
    for path in paths:
        save_image(root / path)
    return root


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Test"), ("TRAINING", "Valid"), ("train", "dev")]
)
def test_splits_in_any_case_are_no_classes(tmp_path, train, val):
    write(tmp_path, *(f"{split}/{kind}/{split}.jpg" for split in (train, val) for kind in "ab"))
    data = load("folder", tmp_path)
    assert data.classes == ["a", "b"] and names(data.val) == [f"{val}.jpg"] * 2
    assert any("no split val" in note for note in data.notes) == (val == "Test")


def test_classes_that_share_their_subfolders_are_refused(tmp_path):
    write(tmp_path, *(f"{split}/{kind}/1.jpg" for split in ("set1", "set2") for kind in "ab"))
    with pytest.raises(UserError, match=r"all hold the same folders \(a, b\)") as caught:
        load("folder", tmp_path)
    assert is_one_sentence(str(caught.value))
    other = tmp_path / "tiny_imagenet"  # where each class has one folder of the same name
    write(other, *(f"train/{kind}/images/{n}.jpg" for kind in "ab" for n in range(3)))
    assert load("folder", other).classes == ["a", "b"]


def test_linked_classes_and_folders_are_read_once(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "more/3.jpg", "val/a/4.jpg")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "more")
    (tmp_path / "train/a/loop").symlink_to(tmp_path / "train")
    (tmp_path / "train/c").symlink_to(tmp_path / "more", target_is_directory=True)
    with pytest.raises(UserError, match=r"no images in .*train/c"):
        load("folder", tmp_path)  # its pictures are those of a
    (tmp_path / "train/c").unlink()
    data = load("folder", tmp_path)
    assert names(data.train) == ["1.jpg", "2.jpg", "3.jpg"] and data.train["label"][:] == [0, 0, 1]


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, "train/a/1.jfif", "train/b/2.jpg", "val/a/3.jpg", "train/beside.jpg")
    (tmp_path / "train/a/4.heic").touch()
    data = load("folder", tmp_path)
    assert names(data.train) == ["1.jfif", "2.jpg"]
    assert any("4.heic" in note for note in data.notes)
    assert any("1 images beside" in note and "beside.jpg" in note for note in data.notes)


def test_share_and_fold(tmp_path):
    write(tmp_path, *(f"{kind}/{n:02}.jpg" for kind in "ab" for n in range(20)))
    data = load("folder", tmp_path, val_share=0.25)
    before = set(names(data.val))
    for fold in ("1/2", "2/2"):
        assert len(load("folder", tmp_path, fold=fold).val) > 5
    write(tmp_path, *(f"a/new{n}.jpg" for n in range(20)))
    assert before <= set(names(load("folder", tmp_path, val_share=0.25).val))
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg")
    with pytest.raises(UserError, match="has a split val"):
        load("folder", tmp_path, val_share=0.25)


@pytest.mark.parametrize(
    ("header", "separator", "paths"),
    [
        ("path,label", ",", ["x/1.jpg", "x/2.jpg", "x/3.jpg"]),
        ("", ",", ["x/1.jpg", "x/2.jpg", "x/3.jpg"]),
        ("id;breed", ";", ["1", "2", "3"]),
        ("label\timage", "\t", ["1.jpg", "2.jpg", "3.jpg"]),
        ("filename,class", ",", ["x\\1.jpg", "x\\2.jpg", "x\\3.jpg"]),
    ],
)
def test_tables(tmp_path, header, separator, paths):
    write(tmp_path, "x/1.jpg", "x/2.jpg", "x/3.jpg")
    turned = header.startswith("label")
    rows = zip(paths, ("cat", "dog", "cat"), strict=True)
    lines = [separator.join(row[::-1] if turned else row) for row in rows]
    for split, chosen in (("train", lines), ("val", lines[:1])):
        (tmp_path / f"{split}.csv").write_text("\n".join([*([header] if header else []), *chosen]))
    data = load("csv", tmp_path)
    assert data.classes == ["cat", "dog"] and data.train["label"][:] == [0, 1, 0]
    assert names(data.train) == ["1.jpg", "2.jpg", "3.jpg"] and names(data.val) == ["1.jpg"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("b/7.jpg", "is not below"),
        ("b/7", "is not below"),
        ("7", "a/7.jpg"),
        ("a/8.png", "a/8.png"),
        ("a/8.jpg", "a/8.jpg"),
        ("8.png", "a/8.png"),
        ("a/8", "which may be"),
        ("8", "which may be"),
        ("9.jpg", "which may be"),
        ("./a/7.jpg", "a/7.jpg"),
        ("D:\\data\\b\\9.jpg", "b/9.jpg"),
    ],
)
def test_a_table_names_one_file_or_none(tmp_path, line, found):
    write(tmp_path, "a/7.jpg", "a/8.jpg", "a/8.png", "a/9.jpg", "b/9.jpg", "c/1.jpg", "c/2.jpg")
    lines = f"path,label\n{line},dog\nc/1.jpg,cat\n"
    (tmp_path / "train.csv").write_text(lines)
    (tmp_path / "._train.csv").write_text("resource fork")
    (tmp_path / "val.csv").write_text("path,label\nc/2.jpg,cat\n")
    if " " in found:
        with pytest.raises(UserError, match=found):
            load("csv", tmp_path)
    else:
        assert load("csv", tmp_path).train[0]["image"]["path"] == str(tmp_path / found)


def test_one_table_with_numbers_as_labels(tmp_path):
    write(tmp_path, *(f"{n}.jpg" for n in range(40)))
    lines = [f"{n}.jpg,{n % 2 * 10}{'.0' * (n % 4 // 2)}" for n in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *lines]))
    data = load("csv", tmp_path, val_share=0.2)
    assert data.classes == ["0", "10"] and len(data.train) + len(data.val) == 40
    labels = {Path(r["image"]["path"]).stem: r["label"] for r in [*data.train, *data.val]}
    assert all(label == int(stem) % 2 for stem, label in labels.items())


def test_every_bad_line_of_a_table_is_a_fault(tmp_path):
    write(tmp_path, *(f"{n}.jpg" for n in range(4)))
    lines = ["path,label", "0.jpg,a", "1.jpg,b", "9.jpg,a", "2.jpg,", "3.jpg", "0.jpg,b"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    (tmp_path / "val.csv").write_text("path,label\n1.jpg,z\n0.jpg,a")
    with pytest.raises(UserError, match=r"Line 4 of .*9\.jpg.*\(4 more faults") as caught:
        load("csv", tmp_path)
    assert is_one_sentence(str(caught.value))
    from data.faults import Faults

    faults = Faults()
    load_data(ClassificationOptions(dataset="csv", data_dir=str(tmp_path)), faults)
    assert [fault.place for fault in faults.found] == [f"line {n}" for n in (4, 5, 6, 7)] + [""]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", "0.jpg,a", "1.jpg,b", "2.jpg,"]))
    (tmp_path / "val.csv").write_text("path,label\n0.jpg,a")
    data = load("csv", tmp_path, skip_unlabelled=True)
    assert len(data.train) == 2 and any("1 lines" in note for note in data.notes)


def test_a_table_without_the_columns_names_them(tmp_path):
    write(tmp_path, "0.jpg")
    (tmp_path / "train.csv").write_text("foo,bar\n0.jpg,a\n")
    with pytest.raises(UserError, match="--image_column"):
        load("csv", tmp_path)
    (tmp_path / "train.csv").write_text("foo,bar\n0.jpg,a\n1.jpg,b\n")
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "val.csv").write_text("foo,bar\n2.jpg,a\n")
    assert load("csv", tmp_path, image_column="foo", label_column="bar").classes == ["a", "b"]


def hub(tmp_path: Path, kind: str, train: list, val: list, **given):
    from tests.test_classification_data import hub_rows

    feature = datasets.Value(kind)
    splits = {"train": hub_rows(feature, train), "validation": hub_rows(feature, val)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    columns = {"image_column": "img", "label_column": "kind"}
    name = f"hub:{tmp_path / 'saved'}"
    return load_data(ClassificationOptions(dataset=name, **columns, **given))


def test_hub_labels_in_any_notation(tmp_path):
    data = hub(tmp_path / "a", "float32", [0.0, 1.0, 2.0], [2.0])
    assert data.classes == ["class 0", "class 1", "class 2"] and data.val["label"][:] == [2]
    data = hub(tmp_path / "b", "string", ["10", "9", "9.0"], ["9"])
    assert data.classes == ["9", "10"] and data.train["label"][:] == [1, 0, 0]
    with pytest.raises(UserError, match=r"holds 0\.5, which is no label"):
        hub(tmp_path / "c", "float32", [0.0, 0.5], [0.0])


def test_hub_samples_without_a_label_can_be_left_out(tmp_path):
    with pytest.raises(UserError, match="--skip_unlabelled"):
        hub(tmp_path / "a", "int64", [0, 1, -1, None], [0])
    data = hub(tmp_path / "b", "int64", [0, 1, -1, None], [0, -1], skip_unlabelled=True)
    assert data.train["label"][:] == [0, 1] and data.val["label"][:] == [0]
    assert any("3 samples without a label" in note for note in data.notes)
