"""Annotations that are not as they should be: each is one sentence, and none is used silently."""

from pathlib import Path

import datasets
import pytest

from errors import UserError
from tests.coco_folder import write_coco
from tests.test_detection_data import (
    MASKS,
    POLYGON,
    annotation,
    coco_content,
    hub_rows,
    is_one_sentence,
    load,
    make_coco,
    make_voc,
    save_image,
    truth_of,
    voc_object,
)


def refusal(dataset: str, folder: Path | None, **options) -> str:
    """The one sentence by which a data set is refused; it names a path in the folder."""
    with pytest.raises(UserError) as caught:
        load(dataset, folder and str(folder), **options)
    message = str(caught.value)
    assert is_one_sentence(message), message
    assert folder is None or str(folder) in message
    return message


# coco


def image(**changes) -> dict:
    return {"images": [{"id": 5, "file_name": "a.jpg", "height": 20, "width": 30} | changes]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (annotation(image_id=[5]), "[5] is no id"),
        (annotation(category_id=[7]), "[7] is no id"),
        (annotation(bbox=[1, 1, 5, "5"]), "something else than numbers"),
        (annotation(bbox=[1, 1, 5, 10**400]), "too large"),
        (annotation(area="ten"), "area ten"),
        (annotation(area=[3]), "area [3]"),
        (annotation(area=-3), "area -3"),
        (annotation(iscrowd="no"), "'no'"),
        ({"annotations": ["text"]}, "annotation text"),
        (image(id=[1]), "[1] is no id"),
        (image(id=2**70), "is no id"),
        (image(file_name=5), "5 is no text"),
        (image(height="abc"), "'abc'"),
        (image(width=1e99), "no number of pixels"),
        ({"images": [None]}, "image None"),
        ({"images": [*image()["images"], *image(file_name="b.jpg")["images"]]}, "two images"),
        ({"categories": [{"id": [7], "name": "dog"}]}, "[7] is no id"),
        ({"categories": [{"id": 7, "name": 8}]}, "8 is no text"),
        ({"categories": [{"id": 7}]}, "'name'"),
    ],
)
@pytest.mark.parametrize("with_masks", [False, True])
def test_a_coco_record_that_cannot_be_used_is_shown(tmp_path, changes, words, with_masks):
    make_coco(tmp_path, **changes)
    assert words in refusal("coco", tmp_path, **(MASKS if with_masks else {}))


def test_a_coco_annotation_that_cannot_be_used_is_named_by_its_id(tmp_path):
    first, second = coco_content()["annotations"]
    make_coco(tmp_path, annotations=[first, second | {"id": 4711, "bbox": [1, 2, 3]}])
    assert "has the annotation with the id 4711, which" in refusal("coco", tmp_path)


def test_a_coco_image_under_two_ids_is_refused(tmp_path):
    first, second = coco_content()["images"]
    make_coco(tmp_path, images=[first, second, {"id": 77, "file_name": "./a.jpg"}])
    message = refusal("coco", tmp_path)
    assert "instances_train2017.json lists ./a.jpg under the ids 5 and 77" in message


def test_coco_ids_may_be_texts_and_numbers(tmp_path):
    content = coco_content()
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = "seven"
    content["images"][0]["id"] = "first"
    for entry in content["annotations"]:
        entry |= {"image_id": "first", "iscrowd": "0"}
    data = load("coco", make_coco(tmp_path, **content))
    assert data.classes == ["cat", "dog"] and data.train["image_id"][:] == [0, 9]
    truth = truth_of(data)
    assert truth["labels"].tolist() == [1, 0] and truth["iscrowd"].tolist() == [0, 0]


def test_a_mask_that_cannot_be_drawn_is_left_out_with_a_note(tmp_path):
    content = coco_content()
    content["annotations"].append(content["annotations"][0] | {"segmentation": POLYGON[0]})
    data = load("coco", make_coco(tmp_path, **content), **MASKS)
    assert len(truth_of(data)["labels"]) == 2 and "1 box" in data.notes[0]
    assert "has no mask" in data.train[0]["dropped"][0]


def test_coco_validation_never_reads_training_images(tmp_path):
    write_coco(tmp_path, train=6, val=6)
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").rename(tmp_path / split)
    data = load("coco", str(tmp_path))
    for split, rows in (("train", data.train), ("val", data.val)):
        paths = [Path(cell["path"]) for cell in rows["image"][:]]
        assert {path.parent.name for path in paths} == {split} and all(map(Path.exists, paths))
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    assert "instances_val2017.json" in refusal("coco", tmp_path)


def test_coco_folder_is_the_one_with_most_of_the_images(tmp_path):
    write_coco(tmp_path, train=6, val=6)
    (tmp_path / "val2017/000.png").rename(tmp_path / "000.png")
    assert "val2017/000.png is not there" in refusal("coco", tmp_path)


# voc


def test_voc_names_with_spaces_and_suffixes(tmp_path):
    make_voc(tmp_path, voc_object())
    for name in ("a cell", "a"):
        save_image(tmp_path / f"JPEGImages/{name}.jpg")
        text = f"<annotation>{voc_object() * len(name)}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    names = tmp_path / "ImageSets/Main/train.txt"
    names.write_text("a cell\na cell.jpg\na  -1\ntrain_1.jpg\n")
    data = load("voc", str(tmp_path))
    stems = [Path(cell["path"]).stem for cell in data.train["image"][:]]
    assert stems == ["a cell", "a cell", "a", "train_1"]
    assert len(truth_of(data, 0)["labels"]) == 6
    names.write_text("a blob\n")
    assert "no image a blob" in refusal("voc", tmp_path)
    names.write_bytes(b"caf\xe9\n")
    assert "train.txt can't be read (it is not text in UTF-8)" in refusal("voc", tmp_path)


@pytest.mark.parametrize("size", [("inf", 20), (-3, 20), (20, "nan"), (20, "wide")])
def test_voc_sizes_that_are_none(tmp_path, size):
    make_voc(tmp_path, voc_object(), size)
    assert "train_1.xml is not a valid VOC annotation" in refusal("voc", tmp_path)


# yolo


def make_yolo(root: Path, line="0 0.5 0.5 0.2 0.2", description: str | None = None) -> None:
    for split in ("train", "val"):
        save_image(root / f"images/{split}/a.jpg")
        (root / "labels" / split).mkdir(parents=True)
        (root / f"labels/{split}/a.txt").write_bytes(line.encode("latin-1"))
    if description:
        (root / "data.yaml").write_text(description)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 .1 .1 .5 .5 nan .2", "Line 1"),
        ("0 nan .5 .2 .2", "Line 1"),
        ("0 .5 .5 inf .2", "Line 1"),
        ("1000000000 .5 .5 .2 .2", "class 1000000000"),
        ("0 .5 .5 .2 .2 \xe9", "not text in UTF-8"),
    ],
)
@pytest.mark.parametrize("with_masks", [False, True])
def test_yolo_lines_that_cannot_be_used(tmp_path, line, words, with_masks):
    make_yolo(tmp_path, line)
    assert words in refusal("yolo", tmp_path, **(MASKS if with_masks else {}))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("names: 3", "must be a list"),
        ("names: cat", "must be a list"),
        ("names: {cat: 0}", "must be a list"),
        ("names: {1000000000: cat}", "must be a list"),
        ("names: [cat, cat]", "the name cat"),
        ("train: 5", "names 5"),
        ("train: [[5]]", "train: [[5]]"),
        ("train: {a: b}", "train: a dict"),
        ("train: [images/train, images/gone]", "images/gone"),
        ("val: images/gone", "images/gone"),
    ],
)
def test_yolo_descriptions_that_cannot_be_used(tmp_path, description, words):
    make_yolo(tmp_path, description=description)
    message = refusal("yolo", tmp_path)
    assert words in message and "data.yaml" in message


def test_yolo_class_files_that_name_a_class_twice(tmp_path):
    make_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    assert "classes.txt gives two classes the name cat" in refusal("yolo", tmp_path)


def test_yolo_joins_several_folders(tmp_path):
    make_yolo(tmp_path, description="train: [images/train, images/more]")
    save_image(tmp_path / "images/more/b.jpg")
    assert len(load("yolo", str(tmp_path)).train) == 2


# hub

NUMBERS = datasets.List(datasets.Value("float32"))
OF_LISTS = {
    "bbox": datasets.List(NUMBERS),
    "category": datasets.List(datasets.Value("int32")),
    "area": NUMBERS,
}
COLUMNS = {"image_column": "photo", "objects_column": "things"}


def hub_folder(path: Path, cell: dict, feature=OF_LISTS, count=2) -> Path:
    rows = hub_rows([cell] * count, feature).add_column("number", list(range(count)))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(path / "saved"))
    return path / "saved"


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"bbox": [[1, 1, 5, 5]], "category": [1, 2], "area": [1]}, "differ in length"),
        ({"bbox": [[1, 1, 5, 5]], "category": [1], "area": [1, 2]}, "differ in length"),
        ({"bbox": [[1, None, 5, 5]], "category": [1], "area": [1]}, "something else than numbers"),
        ({"bbox": [[1, 5, 5]], "category": [1], "area": [1]}, "not four numbers"),
        ({"bbox": [[1, 1, 5, 5]], "category": [1], "area": [-1]}, "area -1"),
    ],
)
@pytest.mark.parametrize("bbox_format", ["coco", "voc", "yolo"])
def test_a_hub_sample_that_cannot_be_used_is_shown(tmp_path, cell, words, bbox_format):
    name = f"hub:{hub_folder(tmp_path, cell)}"
    message = refusal(name, None, bbox_format=bbox_format, **COLUMNS)
    assert words in message and "sample (0," in message and str(tmp_path) in message


def test_hub_boxes_of_text_are_refused(tmp_path):
    feature = OF_LISTS | {"bbox": datasets.List(datasets.List(datasets.Value("string")))}
    cell = {"bbox": [["1", "1", "5", "5"]], "category": [1], "area": [1]}
    name = f"hub:{hub_folder(tmp_path, cell, feature)}"
    assert "something else than numbers" in refusal(name, None, **COLUMNS)


def test_hub_images_are_not_copied(tmp_path, monkeypatch):
    cell = {"bbox": [[1, 1, 5, 5]], "category": [1], "area": [None]}
    name = f"hub:{hub_folder(tmp_path, cell)}"

    def refuse(*args, **options):
        raise AssertionError("rows are written to the disk")

    monkeypatch.setattr(datasets.Dataset, "map", refuse)
    data = load(name, **COLUMNS)
    assert truth_of(data)["area"].tolist() == [25]
    with pytest.raises(UserError, match="doesn't hold images"):
        load(name, image_column="number", objects_column="things")
