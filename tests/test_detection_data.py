"""Detection data: every source's layout, boxes through every transform, determinism, bad input."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from data.decode import SampleError
from data.png import stored_png
from data.stream import SampleKey
from data.synthetic import Shape, draw
from errors import UserError
from figures.sheet import contact_sheet
from tasks.detection import instance_masks
from tasks.detection.batches import collate_eval, collate_train
from tasks.detection.check import Survey, survey
from tasks.detection.dataset import EvalDataset, Reader, TrainDataset
from tasks.detection.figures import detection_panel, draw_objects, pr_curves_figure, with_crowds
from tasks.detection.geometry import Window, boxes_like, cut, letterbox, to_original
from tasks.detection.metrics import RECALLS
from tasks.detection.mixing import copy_paste, jittered, mixup, mosaic
from tasks.detection.options import DetectionOptions
from tasks.detection.rows import DetectionData
from tasks.detection.sources import load_data
from tasks.detection.synthetic import random_shapes, visible_objects
from tasks.detection.transforms import EvalTransform, TrainTransform

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

PLAIN = {"color_jitter": [0, 0, 0, 0], "hflip": 0}
MASKS = {"model": "maskrcnn_resnet50_fpn"}


def load(dataset="synthetic", data_dir: str | None = None, **options) -> DetectionData:
    """The data set that options name."""
    parsed = DetectionOptions(dataset=dataset, data_dir=data_dir, **options)
    parsed.check()
    return load_data(parsed)


@pytest.fixture(scope="module")
def shapes():
    return load(limit_train=24, limit_val=8, seed=3, image_size=[64, 96], **MASKS)


def transform_of(height: int, width: int, mosaic_until=1, **options) -> TrainTransform:
    """The training transform to a size."""
    return TrainTransform(DetectionOptions(image_size=[height, width], **options), mosaic_until)


def key(index=0, epoch=0, position=0) -> SampleKey:
    return SampleKey(epoch, index, position)


def save_image(path: Path, size=(20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def is_one_sentence(message: str) -> bool:
    body = message.removesuffix(".")
    return message.endswith(".") and "\n" not in message and ". " not in body and len(message) < 600


def truth_of(data, index=0, split="train", with_masks=False) -> dict:
    return Reader(getattr(data, split), with_masks).read(index)[1]


def survey_of(data: DetectionData, num_workers=0) -> Survey:
    return survey(Reader(data.train), num_workers, len(data.classes))


def letterboxed(data: DetectionData, *size: int, with_masks=False) -> EvalDataset:
    return EvalDataset(Reader(data.val, with_masks), EvalTransform(size), with_masks)


# Sources

POLYGON = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]


def coco_content(**changes) -> dict:
    """A COCO file: an image with an object and a crowd, one without, ids 3 and 7."""
    runs = {"size": [20, 30], "counts": [0, 40, 560]}
    content = {
        "images": [
            {"id": 5, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 9, "file_name": "b.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [2.25, 3, 10.5, 6], "area": 60.5,
             "iscrowd": 0, "segmentation": POLYGON},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [0, 0, 2, 20], "area": 40,
             "iscrowd": 1, "segmentation": runs},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }  # fmt: skip
    return content | changes


def make_coco(root: Path, file="annotations/instances_{}2017.json", folder="{}2017", **changes):
    for split in ("train", "val"):
        for name in ("a", "b"):
            save_image(root / folder.format(split) / f"{name}.jpg")
        path = root / file.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_content(**changes)))
    return str(root)


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("{}/_annotations.coco.json", "{}"),
        ("annotations/{}.json", "images"),
    ],
)
def test_coco(tmp_path, file, folder):
    data = load("coco", make_coco(tmp_path, file, folder), **MASKS)
    assert data.classes == ["cat", "dog"] and len(data.colors) == 2
    shared, note = data.notes if folder == "images" else ("", *data.notes)
    assert note == "val: 1 of 2 classes have no object, and count in no mean: cat."
    assert not shared or shared.startswith("2 of 2 validation files are training files too")
    assert data.train["image_id"][:] == [5, 9]
    truth = truth_of(data, with_masks=True)
    assert truth["boxes"].tolist() == [[2.25, 3, 10.5, 6], [0, 0, 2, 20]]
    assert truth["labels"].tolist() == [1, 0] and truth["iscrowd"].tolist() == [0, 1]
    assert truth["area"].tolist() == [60.5, 40]
    masks = instance_masks.decode(truth["rles"], (20, 30))
    expected = torch.zeros(2, 20, 30, dtype=torch.uint8)
    expected[0, 3:9, 2:12] = 1
    expected[1, :, :2] = 1
    assert torch.equal(masks, expected)
    sample = letterboxed(data, 20, 30)[0]
    assert sample["labels"].tolist() == [1]  # a crowd is no target
    assert truth_of(data, 1)["boxes"].shape == (0, 4)  # size of b.jpg from its header


def test_coco_class_names_choose_the_order(tmp_path):
    root = make_coco(tmp_path)
    data = load("coco", root, class_names=["dog", "cow", "cat"])
    assert truth_of(data)["labels"].tolist() == [0, 2] and len(data.classes) == 3
    with pytest.raises(UserError, match="cat") as caught:
        load("coco", root, class_names=["dog"])
    assert is_one_sentence(str(caught.value))


def annotation(**changes) -> dict:
    entry = {"id": 4, "image_id": 5, "category_id": 7, "bbox": [1, 1, 5, 5]} | changes
    return {"annotations": [{name: value for name, value in entry.items() if value is not None}]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (annotation(category_id=8), "category 8"),
        (annotation(image_id=6), "image 6"),
        (annotation(bbox=[1, 2, 3]), r"\[1, 2, 3\]"),
        (annotation(bbox=None), "'bbox'"),
        ({"categories": []}, "no categories"),
        ({"images": {}}, "no list 'images'"),
        ({"images": [{"id": 5}]}, "'file_name'"),
        ({"images": [{"id": 5, "file_name": "c.jpg"}]}, "lists c.jpg"),
        ({"categories": [{"id": 7, "name": "x"}, {"id": 3, "name": "x"}]}, "the same name"),
        ({"annotations": []}, "has a usable object"),
    ],
)
def test_bad_coco_files(tmp_path, changes, reason):
    root = make_coco(tmp_path, **changes)
    with pytest.raises(UserError, match=reason) as caught:
        load("coco", root)
    assert is_one_sentence(str(caught.value)) and str(tmp_path) in str(caught.value)


def test_coco_of_several_years_takes_the_last_and_says_so(tmp_path):
    make_coco(tmp_path, folder="{}2014", file="annotations/instances_{}2014.json")
    root = make_coco(tmp_path)
    (tmp_path / "annotations/instances_valminusminival2014.json").write_text("{}")
    data = load("coco", root)
    assert "train2017" in data.train[0]["image"]["path"]
    assert len(data.notes) == 3 and "instances_val2017.json" in data.notes[1]


def test_broken_json_and_categories_that_differ(tmp_path):
    root = make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(json.dumps(coco_content(categories=[{"id": 3, "name": "cow"}])))
    with pytest.raises(UserError, match=r"instances_val2017.json calls the category 3 cow"):
        load("coco", root)
    path.write_text("{")
    with pytest.raises(UserError, match=r"instances_val2017.json is not valid JSON") as caught:
        load("coco", root)
    assert is_one_sentence(str(caught.value))


def voc_object(name="cell", box=(3, 4, 12, 9), difficult=0) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{corners}</bndbox></object>"
    )


def make_voc(root: Path, objects: str, size=(20, 30)) -> str:
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split in ("train", "val"):
        save_image(root / f"JPEGImages/{split}_1.jpg")
        sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
        text = f"<annotation>{sides if size else ''}{objects}</annotation>"
        (root / f"Annotations/{split}_1.xml").write_text(text)
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{split}_1\n")
    return str(root)


def test_voc(tmp_path):
    objects = voc_object() + voc_object("blob", (1, 1, 30, 20), difficult=1)
    data = load("voc", make_voc(tmp_path, objects, size=(0, 0)))
    assert data.classes == ["blob", "cell"]  # the names that occur, sorted
    truth = truth_of(data)
    # Corners count from 1 and belong to the box; the size comes from the header.
    assert truth["boxes"].tolist() == [[2, 3, 10, 6], [0, 0, 30, 20]]
    assert truth["labels"].tolist() == [1, 0] and truth["iscrowd"].tolist() == [0, 1]
    with pytest.raises(UserError, match=r"train_1.xml has an object of the class blob"):
        load("voc", str(tmp_path), class_names=["cell"])
    (tmp_path / "Annotations/val_1.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"val_1.xml is not a valid VOC annotation") as caught:
        load("voc", str(tmp_path))
    assert is_one_sentence(str(caught.value))
    (tmp_path / "Annotations/val_1.xml").unlink()
    with pytest.raises(UserError, match=r"no .*val_1.xml"):
        load("voc", str(tmp_path))


def test_voc_folder_has_vocs_classes(tmp_path):
    make_voc(tmp_path / "VOC2007", voc_object("dog"))
    data = load("voc", str(tmp_path))
    assert len(data.classes) == 20 and data.classes[truth_of(data)["labels"][0]] == "dog"


@pytest.mark.parametrize(
    ("images", "names_in"),
    [("images/{}", "data.yaml"), ("{}/images", "data.yaml"), ("images/{}", "classes.txt")],
)
def test_yolo(tmp_path, images, names_in):
    lines = "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8\n"
    for split in ("train", "val"):
        for name in ("a", "b"):
            save_image(tmp_path / images.format(split) / f"{name}.jpg")
        labels = tmp_path / images.format(split).replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / "a.txt").write_text(lines)
    if names_in == "data.yaml":
        places = "".join(f"{split}: ../{images.format(split)}\n" for split in ("train", "val"))
        (tmp_path / names_in).write_text(places + "names: {0: cat, 1: dog}\n")
    else:
        (tmp_path / names_in).write_text("cat\ndog\n")
    data = load("yolo", str(tmp_path))
    assert data.classes == ["cat", "dog"] and len(data.train) == len(data.val) == 2
    truth = truth_of(data)
    expected = torch.tensor([[12.0, 6, 6, 8], [3, 4, 12, 12]], dtype=torch.float64)
    torch.testing.assert_close(truth["boxes"], expected)
    assert truth["labels"].tolist() == [1, 0]
    assert len(truth_of(data, 1)["labels"]) == 0  # no text file, no objects
    masked = load("yolo", str(tmp_path), **MASKS)
    truth = truth_of(masked, with_masks=True)
    assert truth["labels"].tolist() == [0]  # the box without a mask is left out, and said so
    assert instance_masks.decode(truth["rles"], (20, 30)).sum() == 144
    assert any("1 box" in note and "a.jpg" in note for note in masked.notes)


def test_yolo_lists_of_images_and_bad_lines(tmp_path):
    for name in ("a", "b", "c"):
        save_image(tmp_path / f"images/{name}.jpg")
    (tmp_path / "labels").mkdir()
    for name in "ac":
        (tmp_path / f"labels/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "train.txt").write_text("./images/a.jpg\nimages/b.jpg\n")
    (tmp_path / "val.txt").write_text("./images/c.jpg\n")
    data = load("yolo", str(tmp_path))
    assert (len(data.train), len(data.val), data.classes) == (2, 1, ["class 0"])
    assert "1 classes" in data.notes[0]
    for line, reason in (
        ("0 0.5 0.5 0.2", "Line 2"),
        ("x 1 1 1 1", "Line 2"),
        ("3 .5 .5 .1 .1", "class 3"),
    ):
        (tmp_path / "labels/b.txt").write_text(f"\n{line}\n")
        with pytest.raises(UserError, match=reason) as caught:
            load("yolo", str(tmp_path), class_names=["x", "y"])
        assert is_one_sentence(str(caught.value)) and "labels/b.txt" in str(caught.value)


def hub_rows(objects, feature) -> datasets.Dataset:
    cells = [{"bytes": png(20, 30), "path": None}] * len(objects)
    features = datasets.Features({"photo": datasets.Image(), "things": feature})
    return datasets.Dataset.from_dict({"photo": cells, "things": objects}, features=features)


def png(height, width) -> bytes:
    return stored_png(np.zeros((height, width, 3), np.uint8))


BOX = datasets.List(datasets.Value("float32"))
LABEL = datasets.ClassLabel(names=["x", "y"])
HUB_OBJECTS = {
    "lists": (
        {"bbox": datasets.List(BOX), "category": datasets.List(LABEL)},
        {"bbox": [[3, 4, 13, 10]], "category": [1]},
    ),
    "list of objects": (
        datasets.List({"bbox": BOX, "category": datasets.Value("string")}),
        [{"bbox": [3, 4, 13, 10], "category": "y"}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("nesting", HUB_OBJECTS)
def test_hub(tmp_path, nesting):
    feature, cell = HUB_OBJECTS[nesting]
    rows = hub_rows([cell, cell, None], feature)
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    options = {"image_column": "photo", "objects_column": "things"}
    name = f"hub:{tmp_path / 'saved'}"
    expected = {"coco": [3, 4, 13, 10], "voc": [3, 4, 10, 6]}
    for form, box in expected.items():
        data = load(name, bbox_format=form, **options)
        assert truth_of(data)["boxes"].tolist() == [box]
        assert data.classes[int(truth_of(data)["labels"][0])] == "y"
        assert len(truth_of(data, 2)["labels"]) == 0
    with pytest.raises(UserError, match="photo, things") as caught:
        load(name)
    assert is_one_sentence(str(caught.value))
    with pytest.raises(UserError, match="no column nothing"):
        load(name, **options | {"objects_column": "nothing"})
    with pytest.raises(UserError, match="only boxes"):
        load(name, **MASKS, **options)


def test_hub_normalised_boxes_and_plain_numbers(tmp_path):
    feature = {"boxes": datasets.List(BOX), "label": datasets.List(datasets.Value("int32"))}
    feature["area"] = datasets.List(datasets.Value("float32"))
    cell = {"boxes": [[0.5, 0.5, 0.2, 0.4]], "label": [17], "area": [7]}
    rows = hub_rows([cell] * 20, feature)
    rows.save_to_disk(str(tmp_path / "saved"))
    options = {"image_column": "photo", "objects_column": "things", "bbox_format": "yolo"}
    data = load(f"hub:{tmp_path / 'saved'}", **options)
    assert len(data.train) + len(data.val) == 20 and 1 <= len(data.val) <= 5  # held out
    assert data.classes == ["class 17"] and truth_of(data)["area"].tolist() == [7]
    torch.testing.assert_close(
        truth_of(data, split="val")["boxes"],
        torch.tensor([[12.0, 6, 6, 8]], dtype=torch.float64),
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(UserError, match="category 17"):
        load(f"hub:{tmp_path / 'saved'}", class_names=["a"], **options)


def test_synthetic(shapes):
    options = {"limit_val": 8, "image_size": [64, 96], **MASKS}
    half = load(limit_train=12, seed=3, **options)
    assert half.train[:] == shapes.train.select(range(0, 24, 2))[:]
    assert load(limit_train=12, seed=4, **options).train[:] != half.train[:]
    sizes, kinds = [], set()
    for index in range(len(shapes.train)):
        truth = truth_of(shapes, index, with_masks=True)
        masks = instance_masks.decode(truth["rles"], (64, 96))
        x, y, w, h = truth["boxes"].unbind(1)
        tight = instance_masks.tight_boxes(masks).double()
        assert torch.equal(tight, torch.stack([x, y, x + w, y + h], 1))
        assert torch.equal(masks.flatten(1).sum(1).double(), truth["area"])
        assert (masks.sum(0) <= 1).all()  # of what is seen, every pixel belongs to one
        sizes += torch.maximum(w, h).tolist()
        kinds |= set(truth["labels"].tolist())
    assert kinds == set(range(6)) and max(sizes) > 3 * np.quantile(sizes, 0.05)


def test_synthetic_has_empty_images_and_drops_what_is_hidden():
    rng = np.random.default_rng(0)
    empty = [not random_shapes(rng, (64, 64)) for _ in range(600)]
    assert 0.04 < np.mean(empty) < 0.13
    under, over = (Shape("disk", (32, 32), radius, 0.0) for radius in (16.0, 15.0))
    scene = draw(rng, [under, over], (64, 64))
    ((_, mask),) = visible_objects(scene)
    assert np.array_equal(mask, scene.top == 1)
    scene = draw(rng, [under, Shape("disk", (32, 48), 12.0, 0.0)], (64, 64))
    (_, mask), (_, other) = visible_objects(scene)
    assert not (mask & other).any()


# Bad boxes and bad images


def test_bad_boxes_are_dropped_counted_and_listed(tmp_path):
    bad = [(5, 5, 5, 9), (5, 5, 3, 9), (40, 5, 50, 9)]
    boxes = [*bad, (25, 15, 44, 33), (-4, -3, 5, 6), (2, 2, 9, 9)]
    data = load("voc", make_voc(tmp_path, "".join(voc_object(box=b) for b in boxes)))
    # Clipped to the image of 30x20 pixels; the last is untouched.
    kept = [[24, 14, 6, 6], [0, 0, 5, 6], [1, 1, 8, 8]]
    assert truth_of(data)["boxes"].tolist() == kept
    assert len(data.notes) == 2
    assert all("3 boxes" in n and "_1.jpg" in n and is_one_sentence(n) for n in data.notes)
    found = survey_of(data)
    assert not found.faults and len(found.dropped) == 1
    for part in ("train_1.jpg", "box 1 (cell) has no area", "box 3 (cell) lies outside"):
        assert part in found.dropped[0]
    assert found.boxes.tolist() == [[3, 0, 0]] and found.images.tolist() == [1]


def test_images_that_cannot_be_used_are_named(tmp_path):
    data = load("coco", make_coco(tmp_path))
    dataset = TrainDataset(Reader(data.train), transform_of(32, 32), seed=0)
    save_image(tmp_path / "train2017/a.jpg", (30, 20))
    (tmp_path / "train2017/b.jpg").write_bytes(b"no image")
    for index, reason in ((0, "was 30x20"), (1, "decoded")):
        with pytest.raises(SampleError, match=reason) as caught:
            dataset[key(index)]
        assert dataset.name(index) in str(caught.value) and is_one_sentence(str(caught.value))
    found = survey_of(data)
    assert len(found.faults) == found.samples == 2
    assert str(caught.value) in [fault.sentence for fault in found.faults]


def test_sizes_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    root = make_coco(tmp_path, images=[{"id": 5, "file_name": "a.jpg"}])
    Image.new("RGB", (20, 30)).save(tmp_path / "train2017/a.jpg", exif=exif)
    data = load("coco", root)
    image, truth = Reader(data.train).read(0)
    assert image.shape == (3, 20, 30) and len(truth["boxes"]) == 2


def test_survey_counts_classes_and_sizes(tmp_path):
    data = load("coco", make_coco(tmp_path))
    for workers in (0, 2):
        found = survey_of(data, workers)
        assert found.boxes.tolist() == [[0, 0, 0], [1, 0, 0]] and found.images.tolist() == [0, 1]
        assert (found.crowds, found.empty, found.samples) == (1, 1, 2)
    lines = found.lines(data.classes)
    assert "1 boxes in 1 images" in lines[1] and "100 % small" in lines[1]


def test_folders_that_hold_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/notes").mkdir(parents=True)
    for dataset in ("coco", "voc", "yolo"):
        for folder in (None, "none", "empty", "other"):
            with pytest.raises(UserError) as caught:
                load(dataset, folder and str(tmp_path / folder))
            assert is_one_sentence(str(caught.value))
            assert (str(tmp_path / folder) if folder else "--data_dir") in str(caught.value)
    with pytest.raises(UserError, match=r"coko.*coco.*hub"):
        load("coko")
    with pytest.raises(UserError, match="--copy_paste needs masks"):
        load("voc", make_voc(tmp_path / "voc", voc_object()), copy_paste=0.5)


# Geometry


def test_letterbox_and_its_inverse():
    for original, size in (((100, 160), (96, 96)), ((33, 47), (64, 96)), ((500, 20), (64, 64))):
        window = letterbox(original, size)
        assert max(window.result[0] / size[0], window.result[1] / size[1]) == 1
        corners = torch.tensor([[0.0, 0, original[1], original[0]], [1.5, 2.25, 9.75, 12.125]])
        image = torch.zeros(3, *original, dtype=torch.uint8)
        sample = {"image": image, "boxes": corners, "labels": torch.arange(2)}
        boxed = EvalTransform(size)(sample)
        assert tuple(boxed["image"].shape) == (3, *size)
        left, top = boxed["offset"].tolist()
        expected = [left, top, left + window.result[1], top + window.result[0]]
        assert boxed["boxes"][0].tolist() == expected
        kept = corners[boxed["labels"]].double()
        error = to_original(boxed["boxes"].as_subclass(torch.Tensor), boxed) - kept
        assert error.abs().max() < 1e-4
        inside = boxed["image"][0] != 114
        assert inside.sum() == window.result[0] * window.result[1]
    far = torch.tensor([[-50.0, -50, 500, 500]])
    assert to_original(far, boxed).tolist() == [[0, 0, 20, 500]]  # clipped to the image


def blocks(size=(48, 64), places=((8, 8, 12, 16), (30, 36, 10, 14))) -> dict:
    """A grey image with a block per object, each of its own brightness: 120, 240, ..."""
    image, masks, boxes = torch.zeros(3, *size, dtype=torch.uint8), [], []
    for number, (top, left, height, width) in enumerate(places):
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[top : top + height, left : left + width] = 1
        image[:, mask.bool()] = 120 * (number + 1)
        boxes.append([left, top, left + width, top + height])
        masks.append(mask)
    return {
        "image": tv_tensors.Image(image),
        "boxes": boxes_like(torch.tensor(boxes, dtype=torch.float32), size),
        "labels": torch.arange(len(boxes)),
        "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, *size).byte()),
    }


class Samples:
    """A reader whose samples are all the same."""

    def __init__(self, **of_blocks) -> None:
        self.of_blocks, self.mixed = of_blocks, 0

    def sample(self, index: int) -> dict:
        return blocks(**self.of_blocks)

    def random_sample(self) -> dict:
        self.mixed += 1
        return blocks(**self.of_blocks)


def assert_boxes_fit(sample: dict, tolerance=1.01) -> None:
    """Every box lies around its object's mask, and the mask on the object's pixels."""
    tight = instance_masks.tight_boxes(sample["masks"].as_subclass(torch.Tensor))
    assert len(sample["labels"]) == len(sample["boxes"]) == len(sample["masks"])
    assert (tight - sample["boxes"].as_subclass(torch.Tensor)).abs().max() <= tolerance
    height, width = sample["image"].shape[-2:]
    boxes = sample["boxes"]
    assert boxes.dtype == torch.float32 and (boxes >= 0).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"hflip": 1.0}, {"iou_crop": 1.0}])
def test_boxes_stay_on_their_objects(factor, options):
    settings = PLAIN | {"scale_range": [factor, factor]} | options
    transform = transform_of(56, 56, **settings)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        sample = transform(Samples(), key())
        assert sample["image"].shape == (3, 56, 56)
        if len(sample["labels"]):
            assert_boxes_fit(sample)
        for label, box in zip(sample["labels"].tolist(), sample["boxes"].tolist(), strict=True):
            x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
            # Blurred at the edges, but nearer to its own brightness than to any other.
            assert abs(int(sample["image"][0, y, x]) - 120 * (label + 1)) < 60
        seen |= set(sample["labels"].tolist())
    assert seen == {0, 1}


def test_iou_crop_enlarges_what_it_keeps():
    transform = transform_of(48, 64, **PLAIN, scale_range=[1, 1], iou_crop=1.0)
    samples, factors = Samples(places=((16, 24, 10, 10),)), set()
    for seed in range(20):
        torch.manual_seed(seed)
        boxes = transform(samples, key())["boxes"]
        factors |= {round((box[2] - box[0]) / 10, 1) for box in boxes.tolist()}
    assert min(factors) == 1 and max(factors) > 1.3  # now and then it takes the whole image


@pytest.mark.parametrize(
    "outline",
    [
        None,
        [],
        [[1.0, 1, 5, 5]],  # two points, which a decoder would take for a box
        [[1.0, 1, 5, 5, 1, 5, 7]],
        {"size": [20, 30], "counts": [600]},
        {"size": [10, 10], "counts": [50, 30]},
        {"size": [10, 10]},
        {"size": 10, "counts": [100]},
        {"size": [10, 10], "counts": ["60", 40]},
        {"size": [10, 10], "counts": [110, -10]},
        {"size": [10, 10], "counts": "PPYo1"},
        [1, 1, 5, 5, 1, 5],
        [[1, 1, 5, 5, 1, "b"]],
        [[1, 1, 5, 5, 1, None]],
        [None],
        "11",
        [[1, 1, 5, 5, 1, float("nan")]],
        [[1, 1, 5, 5, 1, float("inf")]],
    ],
)
def test_outlines_that_cannot_be_drawn_are_none(outline):
    assert instance_masks.to_text(outline, (10, 10)) == ""


@pytest.mark.parametrize(("radius", "least"), [(12, 0.93), (20, 0.97), (40, 0.985)])
def test_a_found_mask_keeps_its_outline(radius, least):
    """A disc in an image of 480x640, found by a network of 128x128 without any error."""
    rows, columns = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    disc = ((rows - 200.3) ** 2 + (columns - 331.7) ** 2 <= radius**2).double()
    found = torch.zeros(128, 128, dtype=torch.float64)
    found[16:112] = nn.functional.avg_pool2d(disc[None, None], 5)[0, 0]
    sample = {"image": torch.zeros(3, 480, 640, dtype=torch.uint8), "boxes": torch.zeros(0, 4)}
    meta = EvalTransform((128, 128))(sample | {"labels": torch.zeros(0)})
    box = instance_masks.tight_boxes(disc[None])[0]
    rle = instance_masks.encode_original(found, box, meta)
    mask = instance_masks.decode([rle], (480, 640))[0].bool()
    overlap = (mask & disc.bool()).sum() / (mask | disc.bool()).sum()
    assert overlap > least
    whole = instance_masks.encode_original(found, torch.tensor([0.0, 0, 640, 480]), meta)
    assert whole == rle  # nothing of it lies outside of the box
    for border in ([0, 0, 0, 0], [640, 480, 640, 480]):
        empty = instance_masks.encode_original(found, torch.tensor(border).double(), meta)
        assert not instance_masks.decode([empty], (480, 640)).any()


def test_a_point_far_away_does_not_keep_the_decoder_busy():
    text = instance_masks.to_text([[1e9, 0, 1e9, 10, 4, 10, 4, 0]], (10, 10))
    mask = instance_masks.decode([instance_masks.to_rle(text, (10, 10))], (10, 10))
    assert mask[0].sum(0).tolist() == [0] * 4 + [10] * 6
    near = [[-3.25, 2.0, 14.5, 2.0, 14.5, 8.0]]
    assert json.loads(instance_masks.to_text(near, (10, 10))) == near


def test_small_boxes_stay_exact():
    sample = blocks()
    exact = torch.tensor([[10.0625, 11.5, 12.3125, 13.75]])
    sample |= {"boxes": boxes_like(exact, (48, 64)), "labels": torch.zeros(1, dtype=torch.int64)}
    del sample["masks"]
    window = Window((4, 8, 16, 20), (32, 50), (3, 5), (64, 64))
    expected = [(10.0625 - 8) * 2.5 + 5, (11.5 - 4) * 2 + 3, (12.3125 - 8) * 2.5 + 5, 22.5]
    assert cut(sample, window)["boxes"].tolist() == [expected]


def test_objects_that_are_hardly_seen_are_dropped():
    sample = blocks(places=((8, 8, 20, 20),))
    for left, count in ((10, 1), (25, 1), (27, 0), (29, 0)):  # of 20 columns 18, 3, 1 and none
        window = Window((0, left, 48, 30), (48, 30), (0, 0), (48, 30))
        assert len(cut(sample, window)["labels"]) == count
    tiny = Window((0, 0, 48, 64), (2, 3), (0, 0), (2, 3))
    assert len(cut(sample, tiny)["labels"]) == 0  # less than a pixel is left


def test_images_without_objects_pass_through_everything():
    options = {"iou_crop": 1.0, "mosaic": 0.5, "mixup": 0.5, "copy_paste": 0.5}
    transform = transform_of(40, 56, **options)
    for seed in range(8):
        torch.manual_seed(seed)
        sample = transform(Samples(places=()), key())
        assert sample["boxes"].shape == (0, 4) and sample["masks"].shape == (0, 40, 56)
        assert sample["image"].shape == (3, 40, 56)


# Several samples in one


def test_mosaic_keeps_the_objects_of_all_four():
    labels = set()
    for seed in range(10):
        torch.manual_seed(seed)
        tiles = [blocks() for _ in range(4)]
        for number, tile in enumerate(tiles):
            tile["labels"] = tile["labels"] + 2 * number
        sample = mosaic(tiles, (96, 96), (0.5, 0.8))
        assert_boxes_fit(sample)
        for label, mask in zip(sample["labels"].tolist(), sample["masks"], strict=True):
            values = sample["image"][0][mask.bool()].float()
            assert abs(values.median() - 120 * (label % 2 + 1)) < 60
        labels |= set(sample["labels"].tolist())
    assert labels == set(range(8))


def test_mixup_shows_both():
    torch.manual_seed(0)
    first, second = blocks(), blocks(places=((2, 40, 10, 10),))
    mixed = mixup(first, second)
    assert mixed["labels"].tolist() == [0, 1, 0] and mixed["masks"].shape == (3, 48, 64)
    image = mixed["image"].float()
    share = (image[0, 10, 10] / 120).item()
    assert 0.2 < share < 0.8
    assert abs(image[0, 5, 45] - (1 - share) * 120) < 1.5 and image[0, 47, 0] == 0


def test_copy_paste_hides_and_shrinks():
    source = blocks(places=((8, 8, 12, 10),))  # over the left 10 of 16 columns of the first object
    source["image"] = tv_tensors.Image(torch.full((3, 48, 64), 33, dtype=torch.uint8))
    source["labels"] = torch.tensor([7])
    results = []
    for seed in range(8):
        torch.manual_seed(seed)
        results.append(copy_paste(blocks(), source))
    pasted = [result for result in results if 7 in result["labels"]]
    assert 0 < len(pasted) < 8  # taken with probability one half
    for sample in pasted:
        assert sample["labels"].tolist() == [0, 1, 7]
        assert sample["boxes"].tolist() == [[18, 8, 24, 20], [36, 30, 50, 40], [8, 8, 18, 20]]
        assert sample["image"][0, 10, 10] == 33 and sample["image"][0, 10, 20] == 120
        assert_boxes_fit(sample, 0)
        assert sample["masks"].sum(0).max() == 1
    whole = blocks(places=((6, 6, 16, 20),))
    for seed in range(8):
        torch.manual_seed(seed)
        sample = copy_paste(blocks(), whole)
        assert sample["labels"].tolist() in ([0, 1], [1, 0])  # the hidden one is gone


def test_mosaic_and_mixup_end_at_a_position():
    samples, transform = Samples(), transform_of(48, 64, mosaic=1.0, mixup=1.0, mosaic_until=3)
    transform(samples, key(position=2))
    assert samples.mixed == 4
    transform(samples, key(position=3))
    assert samples.mixed == 4


def test_jitter_covers_its_range():
    widths = []
    for seed in range(80):
        torch.manual_seed(seed)
        sample = jittered(blocks(places=((0, 0, 48, 64),)), (480, 640), (0.5, 2.0))
        x0, _, x1, _ = sample["boxes"][0].tolist()
        widths.append(x1 - x0)
    assert min(widths) < 380 and max(widths) == 640
    assert 0.3 < np.mean([width < 639 for width in widths]) < 0.7


# Samples and batches


def test_same_bits_for_any_number_of_workers(shapes):
    options = {"iou_crop": 0.3, "mosaic": 0.5, "mixup": 0.3, "copy_paste": 0.3}
    transform = transform_of(48, 56, **options)
    dataset = TrainDataset(Reader(shapes.train, True), transform, seed=11, with_masks=True)
    keys = [key(i) for i in range(12)] + [key(i, epoch=1) for i in range(6)]
    runs = []
    for workers, order in ((0, keys), (2, keys), (0, keys[::-1])):
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        sampler = [order[first : first + 6] for first in range(0, len(order), 6)]
        generator = torch.Generator().manual_seed(workers)
        loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate_train,
            generator=generator,
        )  # fmt: skip
        runs.append(list(loader))
        assert torch.equal(torch.get_rng_state(), state)  # the main process is left alone
    for batch, other in zip(runs[0], runs[1], strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    for batch, other in zip(runs[0], runs[2][::-1], strict=True):
        assert torch.equal(batch["image"], other["image"].flip(0))
    assert not torch.equal(runs[0][0]["image"], runs[0][2]["image"])  # another epoch
    batch = runs[0][0]
    assert batch["image"].shape == (6, 3, 48, 56) and batch["image"].dtype == torch.uint8


def test_train_batches_are_padded():
    def sample(count):
        return {
            "image": torch.zeros(3, 8, 8, dtype=torch.uint8),
            "boxes": torch.ones(count, 4),
            "labels": torch.zeros(count, dtype=torch.int64),
            "masks": torch.ones(count, 8, 8, dtype=torch.uint8),
        }

    for counts, slots in (((0, 0), 8), ((3, 8), 8), ((9, 2), 12)):
        batch = collate_train([sample(count) for count in counts])
        assert batch["boxes"].shape == (2, slots, 4) and batch["boxes"].dtype == torch.float32
        assert batch["masks"].shape == (2, slots, 8, 8) and batch["masks"].dtype == torch.uint8
        assert batch["labels"].dtype == torch.int64
        for row, count in enumerate(counts):
            assert batch["labels"][row].tolist() == [0] * count + [-1] * (slots - count)
            assert (
                batch["boxes"][row, count:].eq(0).all() and batch["boxes"][row, :count].eq(1).all()
            )


def test_eval_batches_carry_the_truth_at_its_own_resolution(tmp_path):
    data = load("coco", make_coco(tmp_path), **MASKS)
    dataset = letterboxed(data, 64, 64, with_masks=True)
    loader = DataLoader(dataset, batch_size=2, collate_fn=collate_eval, num_workers=1)
    (batch,) = list(loader)
    assert batch["image"].shape == (2, 3, 64, 64) and batch["labels"][0, :2].tolist() == [1, -1]
    truth = batch["truth"][0]
    assert truth["boxes"].dtype == torch.float64 and truth["iscrowd"].tolist() == [0, 1]
    meta = {name: batch[name][0] for name in ("size", "scale", "offset")}
    assert meta["size"].tolist() == [20, 30]
    x0, y0, x1, y1 = to_original(batch["boxes"][0, :1], meta)[0].tolist()
    assert np.allclose([x0, y0, x1 - x0, y1 - y0], truth["boxes"][0], atol=1e-5)
    assert len(truth["rles"]) == 2 and truth["rles"][0]["size"] == [20, 30]


# Figures


def test_panels_show_boxes_in_class_colours():
    colors, classes = [(255, 0, 0), (0, 0, 255)], ["a", "b"]
    image = torch.full((3, 128, 160), 100, dtype=torch.uint8)
    truth = {"boxes": torch.tensor([[40.0, 50, 90, 100]]), "labels": torch.tensor([0])}
    found = truth | {"labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    panel = detection_panel(image, truth, found, classes, colors, 0.3)
    assert panel.dtype == torch.uint8 and panel.shape[1] >= 256
    start = (panel.shape[2] - 320) // 2  # the truth, enlarged twice
    assert panel[:, 150, start + 80].tolist() == [255, 0, 0]
    assert panel[:, 150, -320 + 80].tolist() == [0, 0, 255]
    assert panel[:, 150, 80].tolist() == [100, 100, 100]
    low = detection_panel(image, truth, found, classes, colors, min_score=0.95)
    assert low[:, :, -320:].eq(100).all()  # below the threshold nothing is drawn
    crowd = draw_objects(image, truth | {"iscrowd": torch.tensor([1])}, classes, colors)
    assert crowd[:, 75, 40].tolist() == [0, 0, 0]
    masks = torch.zeros(1, 128, 160, dtype=torch.uint8)
    masks[:, 60:90, 50:80] = 1
    filled = draw_objects(image, truth | {"masks": masks}, classes, colors)
    assert filled[0, 75, 65] > 150 and filled[2, 75, 65] < 100
    small = torch.zeros(1, 128, 160, dtype=torch.uint8)
    small[:, 70:80, 60:70] = 1
    both = {"boxes": torch.tensor([[60.0, 70, 70, 80], [40, 50, 90, 100]])}
    both |= {"labels": torch.tensor([1, 0]), "masks": torch.cat([small, masks])}
    filled = draw_objects(image, both, classes, colors)
    assert filled[2, 75, 65] > 150 and filled[0, 65, 55] > 150  # the smaller one is on top
    sheet = contact_sheet([panel, panel], classes, colors)
    assert sheet.shape[1] > 2 * panel.shape[1]
    wide = detection_panel(image.repeat(1, 1, 9), truth, found, classes, colors, 0.3)
    assert wide.shape[2] < 3 * 500


def test_crowds_are_shown_with_the_truth(tmp_path):
    data = load("coco", make_coco(tmp_path), **MASKS)
    dataset = letterboxed(data, 64, 64, with_masks=True)
    shown = with_crowds(dataset[0])
    assert shown["iscrowd"].tolist() == [1, 0] and shown["labels"].tolist() == [0, 1]
    # 30x20 pixels become 64x43, with 10 rows of grey above.
    assert np.allclose(shown["boxes"][0], [0, 10, 2 * 64 / 30, 53])
    assert torch.equal(shown["boxes"][1], dataset[0]["boxes"][0])
    assert shown["masks"].shape == (2, 64, 64) and not shown["masks"][0].any()


def test_curves_are_drawn_in_their_colours():
    colors = {"a": (255, 0, 0), "b": (0, 0, 255)}
    level, falling = np.full(101, 0.5), 1 - RECALLS
    figure = pr_curves_figure({"a": level, "b": falling}, {"a": 0.5, "b": 0.5}, colors)
    assert figure.dtype == torch.uint8 and figure.shape[0] == 3
    red = (figure[0] > 200) & (figure[1] < 60) & (figure[2] < 60)
    rows, columns = red[:, 60:450].nonzero().T
    assert rows.unique().numel() <= 3 and columns.unique().numel() > 300  # a level line
    many = {f"class {n}": np.full(101, n / 40) for n in range(40)}
    shown = pr_curves_figure(many, dict.fromkeys(many, 0.3), dict.fromkeys(many, (255, 0, 0)))
    assert shown.shape == figure.shape and not torch.equal(shown, figure)
