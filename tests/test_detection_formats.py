"""Annotations as tools write them: read right, or refused with the reason."""

import json
import math
import os
import sys
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from data.faults import Faults
from data.paths import resolve
from errors import UserError
from tasks.detection import instance_masks
from tasks.detection.dataset import Reader
from tasks.detection.headers import read_headers
from tasks.detection.metrics import average_precision
from tasks.detection.options import DetectionOptions
from tasks.detection.records import Records
from tasks.detection.sources import load_data
from tasks.segmentation.dataset import Reader as MaskReader
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import load_data as load_masks
from tests.test_detection_data import (
    MASKS,
    POLYGON,
    annotation,
    coco_content,
    is_one_sentence,
    load,
    make_coco,
    make_voc,
    save_image,
    truth_of,
    voc_object,
)

ORIENTATION = 0x0112


def refused(dataset: str, folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(dataset, str(folder), **options)
    assert is_one_sentence(str(caught.value)), str(caught.value)
    return str(caught.value)


def said(data) -> str:
    assert all(map(is_one_sentence, data.notes)), data.notes
    return " ".join(data.notes)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def paths_of(rows) -> list[str]:
    return [Path(cell["path"]).name for cell in rows["image"][:]]


# YOLO

BOX = "0 0.5 0.5 0.2 0.4\n"


def make_yolo(
    root: Path, lines="0 0.5 0.5 0.2 0.4\n", names="names: [cat, dog]\n", **files
) -> Path:
    for split in ("train", "val"):
        save_image(root / f"images/{split}/a.jpg")
        write(root / f"labels/{split}/a.txt", lines)
    if names:
        write(root / "data.yaml", names)
    return root


@pytest.mark.parametrize("source", ["yolo", "voc", "voc lists"])
def test_other_files_beside_images_are_named_and_none_has_two_images(tmp_path, source):
    if source == "yolo":
        root, folder = make_yolo(tmp_path), tmp_path / "images/train"
    elif source == "voc lists":
        root = Path(make_voc(tmp_path, voc_object()))
        folder = next(path for path in tmp_path.rglob("JPEGImages"))
    else:
        root, folder = tmp_path, tmp_path / "train"
        for split in ("train", "val"):
            save_image(tmp_path / split / "a.jpg")
            xml = f"<annotation>{voc_object()}</annotation>"
            write(tmp_path / split / "a.xml", xml)
    write(folder / "b.heic2", "x")
    name = source.split()[0]
    assert "1 file is left out" in said(load(name, str(root))) and "b.heic2" in said(
        load(name, str(root))
    )
    image = next(path for path in sorted(folder.iterdir()) if path.suffix == ".jpg")
    save_image(image.with_suffix(".png"))
    words = "which may be" if source == "voc lists" else "have the same file"
    assert words in refused(name, root)


KEYPOINTS = "0 .5 .5 .2 .4 .4 .4 2 .6 .4 1 .5 .5 0 .5 .6 2\n"  # four of three numbers


def test_yolo_poses_keep_their_boxes_and_lose_their_keypoints(tmp_path):
    make_yolo(tmp_path, KEYPOINTS, "names: [person]\nkpt_shape: [4, 3]\n")
    data = load("yolo", str(tmp_path))
    expected = torch.tensor([[12.0, 6, 6, 8]], dtype=torch.float64)
    torch.testing.assert_close(truth_of(data)["boxes"], expected)
    assert "keypoints (kpt_shape), which are left out" in said(data)
    write(tmp_path / "data.yaml", "names: [person]\nkpt_shape: [5, 3]\n")
    assert "15 numbers of keypoints" in refused("yolo", tmp_path)
    write(tmp_path / "data.yaml", "names: [person]\nkpt_shape: four\n")
    assert "kpt_shape" in refused("yolo", tmp_path)


def test_yolo_poses_without_kpt_shape_are_no_polygons(tmp_path):
    make_yolo(tmp_path, KEYPOINTS, "names: [person]\n")
    assert "kpt_shape" in refused("yolo", tmp_path)
    make_yolo(tmp_path, KEYPOINTS.replace(" 2", " 1"), "names: [person]\n")
    assert "4 keypoints" in refused("yolo", tmp_path)


def test_yolo_numbers_in_pixels_are_refused(tmp_path):
    make_yolo(tmp_path, "0 12 8 6 4\n")
    assert "Line 1" in (message := refused("yolo", tmp_path)) and "divide pixels" in message


@pytest.mark.parametrize("number", ["1.0", "1", "01", "+1", "1e0"])
def test_yolo_classes_are_whole_numbers_in_any_notation(tmp_path, number):
    data = load("yolo", str(make_yolo(tmp_path, f"{number} 0.5 0.5 0.2 0.4\n")))
    assert truth_of(data)["labels"].tolist() == [1]


@pytest.mark.parametrize("number", ["1.5", "-1", "1_0", "nan", "x"])
def test_yolo_classes_that_are_no_numbers(tmp_path, number):
    assert "Line 1" in refused("yolo", make_yolo(tmp_path, f"{number} 0.5 0.5 0.2 0.4\n"))


@pytest.mark.parametrize(
    "names",
    [
        "names: [yes, no]",
        "names: {0: yes, 1: no}",
        "names:\n- yes\n- no",
        "names: {0.0: yes, '1': no}",
    ],
)
@pytest.mark.parametrize("file", ["data.yaml", "coco8.yaml", "data.yml", "Data.YAML"])
def test_yolo_names_are_texts_in_any_one_yaml(tmp_path, names, file):
    make_yolo(tmp_path, names=None)
    write(tmp_path / file, f"{names}\ntest:\nval: null\nnc: 2\n")
    assert load("yolo", str(tmp_path)).classes == ["yes", "no"]


@pytest.mark.parametrize(
    "names", ["[1.0, 2020-01-01, ~, 010]", "{0: 1.0, 1: 2020-01-01, 2: ~, 3: 010}"]
)
def test_yolo_names_that_look_like_something_else(tmp_path, names):
    make_yolo(tmp_path, names=f"names: {names}")
    assert load("yolo", str(tmp_path)).classes == ["1.0", "2020-01-01", "~", "010"]


def test_yolo_descriptions_that_are_several_or_disagree(tmp_path):
    make_yolo(tmp_path, names=None)
    write(tmp_path / "one.yaml", "names: [a, b]")
    write(tmp_path / "args.yaml", "epochs: 5")
    assert load("yolo", str(tmp_path)).classes == ["a", "b"]
    write(tmp_path / "two.yaml", "names: [c, d]")
    assert "one.yaml and two.yaml" in refused("yolo", tmp_path)
    write(tmp_path / "data.yaml", "names: [c, d]\nnc: 3\n")
    assert "3 classes, but names 2" in refused("yolo", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n",
        "names: " + "[" * 5000 + "]" * 5000,
        "names: [[a], [b]]",
        "names: {0: [a]}",
        "train: {a: &x [y], b: *x}",
    ],
)
def test_yolo_descriptions_that_are_bombs(tmp_path, text):
    make_yolo(tmp_path, names=text)
    assert "data.yaml" in refused("yolo", tmp_path)


def test_yolo_texts_that_are_not_where_they_are_looked_for(tmp_path):
    make_yolo(tmp_path)
    (tmp_path / "labels/val").rename(tmp_path / "labels/valid")
    message = refused("yolo", tmp_path)
    assert "split val has a text file" in message and "labels/val/a.txt" in message
    write(tmp_path / "labels/val/a.txt", "")
    assert "No validation image" in (message := refused("yolo", tmp_path)) and "a.jpg" in message


@pytest.mark.parametrize("beside", [False, True])
def test_yolo_folders_called_images_above_the_data_count_for_nothing(tmp_path, beside):
    root = tmp_path / "images/mine"
    if beside:
        for split in ("train", "val"):
            save_image(root / f"{split}/a.jpg")
            write(root / f"{split}/a.txt", "0 0.5 0.5 0.2 0.4\n")
    else:
        make_yolo(root)
    assert truth_of(load("yolo", str(root)))["labels"].tolist() == [0]


def test_yolo_lists_written_on_another_machine_and_texts_without_an_image(tmp_path):
    make_yolo(tmp_path)
    save_image(tmp_path / "images/train/b c.jpg")
    write(tmp_path / "labels/train/gone.txt", "")
    write(tmp_path / "train.txt", "C:\\data\\images\\train\\a.jpg\n/home/me/images/train/b c.jpg\n")
    write(tmp_path / "data.yaml", "train: train.txt\nval: ..\\mine\\images\\val\nnames: [cat]\n")
    data = load("yolo", str(tmp_path))
    assert paths_of(data.train) == ["a.jpg", "b c.jpg"] and paths_of(data.val) == ["a.jpg"]
    assert "1 text file has no image" in said(data) and "gone.txt" in said(data)
    write(tmp_path / "train.txt", "images/train/gone.jpg\n")
    assert "gone.jpg, which is not there" in refused("yolo", tmp_path)


def test_yolo_images_without_a_text_file_are_counted(tmp_path):
    make_yolo(tmp_path)
    save_image(tmp_path / "images/train/new.jpg")
    assert "1 of 3 images have no text file" in said(data := load("yolo", str(tmp_path)))
    assert "new.jpg" in said(data) and len(data.train) == 2
    data = load("yolo", str(tmp_path), skip_unlabelled=True)
    assert len(data.train) == 1 and "train: 1 of 2 images are left out" in said(data)


def test_darknet(tmp_path):
    for name in "abc":
        save_image(tmp_path / f"obj_train_data/{name}.jpg")
        write(tmp_path / f"obj_train_data/{name}.txt", "1 0.5 0.5 0.2 0.4\n")
    write(tmp_path / "obj.names", "yes\nno\n")
    write(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    write(tmp_path / "valid.txt", "data/obj_train_data/c.jpg\n")
    places = "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    lines = f"classes = 2\n{places}backup = backup/\n"
    write(tmp_path / "obj.data", lines)
    data = load("yolo", str(tmp_path))
    assert data.classes == ["yes", "no"] and (len(data.train), len(data.val)) == (2, 1)
    assert truth_of(data)["labels"].tolist() == [1]
    write(tmp_path / "obj.data", lines.replace("obj.names", "gone.names"))
    assert "gone.names" in refused("yolo", tmp_path)


# COCO


@pytest.mark.parametrize(
    ("file", "folder", "written"),
    [
        ("annotations/instances_{}.json", "{}", "{}\\a.jpg"),
        ("annotations/instances_{}.json", "{}", "C:\\data\\a.jpg"),
        ("annotations/instances_{}.json", "{}", "/home/me/data/a.jpg"),
        ("annotations/{}/instances_default.json", "images/{}", "a.jpg"),
        ("{}/result.json", "{}/images", "images/a.jpg"),
        ("{}/labels_my-project.json", "{}", "a.jpg"),
        ("my_{}_coco.json", "{}", "a.jpg"),
        ("{}/annotations/instances_default.json", "{}/images", "a.jpg"),
    ],
)
@pytest.mark.parametrize("upper", [False, True])
def test_coco_files_of_any_name(tmp_path, file, folder, written, upper):
    for split in ("train", "val"):
        content = coco_content()
        content["images"] = [content["images"][0] | {"file_name": written.format(split)}]
        split = split.capitalize() if upper and "{}/" in file and "/{}" not in file else split
        save_image(tmp_path / folder.format(split) / "a.jpg")
        write(tmp_path / file.format(split), content)
    data = load("coco", str(tmp_path))
    assert paths_of(data.train) == ["a.jpg"] and truth_of(data)["labels"].tolist() == [1, 0]
    assert Path(data.val[0]["image"]["path"]).is_file()


def test_several_coco_files_that_could_be_meant(tmp_path):
    make_coco(tmp_path, "{}/a.json", "{}")
    write(tmp_path / "train/b.json", coco_content())
    assert "a.json, b.json" in refused("coco", tmp_path)


def test_coco_in_one_file_holds_a_share_out(tmp_path):
    images = [{"id": n, "file_name": f"{n:02}.jpg"} for n in range(20)]
    objects = [{"id": n, "image_id": n, "category_id": 3, "bbox": [1, 1, 5, 5]} for n in range(20)]
    for entry in images:
        save_image(tmp_path / "images" / entry["file_name"])
    content = coco_content(images=images, annotations=objects, categories=[{"id": 3, "name": "x"}])
    write(tmp_path / "annotations/instances_default.json", content)
    assert "--val_share" in refused("coco", tmp_path)
    data = load("coco", str(tmp_path), val_share=0.2)
    names = paths_of(data.train), paths_of(data.val)
    assert sorted(names[0] + names[1]) == [e["file_name"] for e in images] and names[1]
    folds = [paths_of(load("coco", str(tmp_path), fold=f"{k}/3").val) for k in (1, 2, 3)]
    assert sorted(chain(*folds)) == [e["file_name"] for e in images]


@pytest.mark.parametrize("same_name", [False, True])
def test_coco_categories_that_only_group_others_are_dropped(tmp_path, same_name):
    name = "dog" if same_name else "animals"
    categories = [
        {"id": 0, "name": name, "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": name},
        {"id": 7, "name": "dog", "supercategory": name},
    ]
    data = load("coco", make_coco(tmp_path, categories=categories))
    assert data.classes == ["cat", "dog"] and truth_of(data)["labels"].tolist() == [1, 0]
    assert f"only group other categories: {name}" in said(data)


def test_coco_numbers_in_any_notation(tmp_path):
    content = coco_content()
    content["categories"][0]["id"] = "7"
    for entry in content["annotations"]:
        entry |= {"image_id": "5", "category_id": f"{entry['category_id']}.0", "iscrowd": "0"}
    content["images"][0] |= {"width": "30", "height": 20.0}
    data = load("coco", make_coco(tmp_path, **content))
    assert truth_of(data)["labels"].tolist() == [1, 0] and data.train["image_id"][:] == [5, 9]


def test_coco_ids_of_text_keep_their_zeros(tmp_path):
    content = coco_content()
    content["images"] = [
        {"id": "007", "file_name": "a.jpg"},
        {"id": "7", "file_name": "b.jpg"},
    ]
    content["annotations"] = [content["annotations"][0] | {"image_id": "7"}]
    data = load("coco", make_coco(tmp_path, **content))
    assert [len(truth_of(data, n)["labels"]) for n in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        annotation(segmentation=math.nan),
        {"annotations": [[]] * 3},
        {"images": [{"id": 5, "file_name": "\udcff.jpg"}]},
        {"images": [{"id": 5, "file_name": "a\0.jpg"}]},
    ],
)
def test_coco_records_of_strange_kinds(tmp_path, change):
    folder = make_coco(tmp_path, **change)
    if "segmentation" in str(change):
        assert "has no mask" in refused("coco", tmp_path, **MASKS)
        assert len(truth_of(load("coco", folder))["labels"]) == 1
    else:
        refused("coco", tmp_path)


def test_coco_masks_nested_ten_thousand_deep(tmp_path):
    make_coco(tmp_path)
    text = json.dumps(coco_content()).replace(json.dumps(POLYGON), "[" * 10_000 + "]" * 10_000)
    for split in ("train", "val"):
        write(tmp_path / f"annotations/instances_{split}2017.json", text)
    refused("coco", tmp_path, **MASKS)  # too deep to parse, or no mask: one sentence either way


def test_coco_keypoints_are_left_out_with_a_note(tmp_path):
    content = coco_content()
    content["annotations"][0]["keypoints"] = [1, 2, 2]
    assert "keypoints, which are left out" in said(load("coco", make_coco(tmp_path, **content)))


def test_every_fault_of_a_coco_file_is_found_in_one_pass(tmp_path):
    content = coco_content()
    content["annotations"] += [
        {"id": 8, "image_id": 5, "category_id": 99, "bbox": [1, 1, 2, 2]},
        {"id": 9, "image_id": 5, "category_id": 7, "bbox": [1, 1]},
    ]
    folder, faults = make_coco(tmp_path, **content), Faults()
    load_data(DetectionOptions(dataset="coco", data_dir=folder), faults)
    assert [fault.place for fault in faults.found] == ["annotation 3", "annotation 4"] * 2
    with pytest.raises(UserError, match="3 more faults"):
        load("coco", folder)


# VOC


def voc_xml(*objects: str, size=(20, 30)) -> str:
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    return f"<annotation>{sides}{''.join(objects)}</annotation>"


@pytest.mark.parametrize(
    ("images", "xml"),
    [
        ("{}", "{}"),
        ("{}/images", "{}/annots"),
        ("images/{}", "annots/{}"),
        ("{}/images", "{}/images"),
        ("images/{}", "Annotations/{}"),
        ("images/{}", "images/{}"),
    ],
)
@pytest.mark.parametrize("upper", [False, True])
def test_voc_without_lists(tmp_path, images, xml, upper):
    for split in ("train", "val"):
        split = split.upper() if upper else split
        save_image(tmp_path / images.format(split) / "a.JPG")
        write(tmp_path / xml.format(split) / "a.xml", voc_xml(voc_object()))
    data = load("voc", str(tmp_path))
    assert data.classes == ["cell"] and truth_of(data)["boxes"].tolist() == [[2, 3, 10, 6]]
    assert (len(data.train), len(data.val)) == (1, 1)


@pytest.mark.parametrize(("images", "xml"), [(".", "."), ("images", "annots"), ("imgs", "imgs")])
def test_voc_in_one_folder_with_images_nobody_labelled(tmp_path, images, xml):
    for number in range(20):
        save_image(tmp_path / images / f"{number}.jpg")
        write(tmp_path / xml / f"{number}.xml", voc_xml(voc_object()))
    save_image(tmp_path / images / "new.jpg")
    assert "new.xml" in refused("voc", tmp_path, val_share=0.2)
    data = load("voc", str(tmp_path), val_share=0.2, skip_unlabelled=True)
    assert len(data.train) + len(data.val) == 20 and "1 of" in said(data)
    write(tmp_path / xml / "orphan.xml", voc_xml())
    data = load("voc", str(tmp_path), val_share=0.2, skip_unlabelled=True)
    assert "1 XML file has no image" in said(data)


@pytest.mark.parametrize("word", ["1", "true", "True", "1.0", "yes"])
def test_voc_difficult_in_any_notation(tmp_path, word):
    data = load("voc", make_voc(tmp_path, voc_object() + voc_object(difficult=word)))
    assert truth_of(data)["iscrowd"].tolist() == [0, 1]


def test_voc_entity_bombs_are_refused(tmp_path):
    make_voc(tmp_path, voc_object())
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><annotation>&a11;</annotation>'
    write(tmp_path / "Annotations/train_1.xml", text)
    assert "train_1.xml is not a valid" in refused("voc", tmp_path)


def test_a_pipe_in_place_of_annotations_is_not_waited_for(tmp_path):
    make_voc(tmp_path, voc_object())
    (tmp_path / "Annotations/train_1.xml").unlink()
    os.mkfifo(tmp_path / "Annotations/train_1.xml")
    assert "no" in refused("voc", tmp_path)
    make_yolo(tmp_path / "yolo")
    os.mkfifo(tmp_path / "yolo/train.txt")
    write(tmp_path / "yolo/data.yaml", "train: train.txt\nnames: [a]\n")
    assert "train.txt" in refused("yolo", tmp_path / "yolo")


def test_names_that_no_file_can_have(tmp_path):
    content = coco_content()
    content["images"][1]["file_name"] = "b" * 5000
    make_coco(tmp_path, **content)
    assert "is not there" in refused("coco", tmp_path)
    content["images"] = [content["images"][1] | {"id": 5}]
    make_coco(tmp_path, **content)
    with pytest.raises(UserError, match="none of the usual folders"):
        load("coco", str(tmp_path))
    write_csv(tmp_path / "csv", f"filename,class,xmin,ymin,xmax,ymax\n{'b' * 5000},x,1,1,4,4\n")
    with pytest.raises(UserError, match="is not there"):
        load("csv", str(tmp_path / "csv"))


def test_paths_are_resolved_in_order(tmp_path):
    for name in ("a/b/c.jpg", "b/c.jpg", "c.jpg"):
        save_image(tmp_path / name)
    assert resolve("a/b/c.jpg", [tmp_path]) == tmp_path / "a/b/c.jpg"
    assert resolve("x\\b\\c.jpg", [tmp_path]) == tmp_path / "b/c.jpg"
    assert resolve("../../b/c.jpg", [tmp_path]) == tmp_path / "b/c.jpg"
    assert resolve("/home/me/c.jpg", [tmp_path / "a/b", tmp_path]) == tmp_path / "a/b/c.jpg"
    assert resolve("./", [tmp_path]) == tmp_path and resolve("d.jpg", [tmp_path]) is None


def test_images_that_are_not_there_are_found_before_any_work(tmp_path):
    make_coco(tmp_path)
    (tmp_path / "train2017/b.jpg").unlink()
    assert "b.jpg is not there" in refused("coco", tmp_path)
    os.mkfifo(tmp_path / "train2017/b.jpg")
    assert "b.jpg is no regular file" in refused("coco", tmp_path)


# Sizes and EXIF


def test_headers_are_read_in_order(tmp_path):
    names = [tmp_path / f"{n}.png" for n in range(200)]
    for number, path in enumerate(names):
        if number != 50:
            save_image(path, (number + 1, 7))
    found = list(read_headers(map(str, names)))
    assert [h.upright for h in found[:50]] == [(n + 1, 7) for n in range(50)]
    assert found[50].upright == (0, 0) and found[199].upright == (200, 7)


def test_an_image_of_another_size_than_stated_counts_as_it_is(tmp_path):
    content = coco_content()
    content["annotations"].append(content["annotations"][0] | {"bbox": [25, 15, 20, 20]})
    content["annotations"].append(content["annotations"][0] | {"bbox": [35, 5, 5, 5]})
    content["images"][0] |= {"height": 40, "width": 60}
    data = load("coco", make_coco(tmp_path, **content))
    image, truth = Reader(data.train).read(0)
    assert tuple(image.shape[1:]) == (20, 30) == (data.train[0]["height"], data.train[0]["width"])
    # Boxes are clipped to the picture, and dropped outside of it.
    assert truth["boxes"].tolist() == [[2.25, 3, 10.5, 6], [0, 0, 2, 20], [25, 15, 5, 5]]
    assert data.train[0]["stated"] == "60x40" and not data.train[1]["stated"]
    assert "train: 1 image has another size" in said(data) and "a.jpg" in said(data)


@pytest.mark.parametrize("source", ["voc", "hub", "csv", "labelme"])
def test_other_sources_take_the_images_own_size_too(tmp_path, source):
    if source == "voc":
        data = load("voc", make_voc(tmp_path, voc_object(), size=(50, 50)))
    elif source == "csv":
        write_csv(
            tmp_path, "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,50,50,cat,2,3,12,9\n"
        )
        data = load("csv", str(tmp_path))
    elif source == "labelme":
        data = load("labelme", str(make_labelme(tmp_path, imageHeight=50, imageWidth=50)))
    else:
        data = load(f"hub:{save_hub(tmp_path, height=50, width=50)}")
    assert (data.train[0]["height"], data.train[0]["width"]) == (20, 30)
    assert "another size" in said(data)


def save_hub(folder: Path, **columns) -> Path:
    path = folder / "a.jpg"
    save_image(path)
    feature = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.Value("float32")),
    }
    content = {
        "image": [str(path)] * 2,
        "objects": [{"bbox": [[2, 3, 10, 6]], "category": [1.0]}, {"bbox": [], "category": []}],
    }
    schema = {"image": datasets.Image(), "objects": feature}
    for name, value in columns.items():
        content[name], schema[name] = [value] * 2, datasets.Value("int32")
    rows = datasets.Dataset.from_dict(content, features=datasets.Features(schema))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def test_hub_skips_unlabelled_images_and_keeps_the_others_together(tmp_path):
    data = load(f"hub:{save_hub(tmp_path)}", skip_unlabelled=True)
    assert len(data.train) == 1 and truth_of(data)["boxes"].tolist() == [[2, 3, 10, 6]]
    assert data.classes == ["class 1"] and "1 of 2 images" in said(data)


def save_turned(path: Path, size=(20, 30)) -> None:
    """An image whose EXIF asks for a quarter turn; its left half is white as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] // 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def test_boxes_drawn_without_heeding_exif(tmp_path):
    folder = make_coco(tmp_path, images=coco_content()["images"][:1])
    for split in ("train", "val"):
        save_turned(tmp_path / f"{split}2017/a.jpg")
    message = refused("coco", tmp_path)  # the stated size is that before the turn
    assert "--exif ignore" in message and "20x30" in message and "30x20" in message
    data = load("coco", folder, exif="ignore")
    image, truth = Reader(data.train).read(0)
    assert tuple(image.shape[1:]) == (20, 30) and image[:, :, :13].float().mean() > 240
    assert truth["boxes"][0].tolist() == [2.25, 3, 10.5, 6]
    assert "1 image has an EXIF orientation" in said(data)


def test_square_images_with_exif_are_said(tmp_path):
    images = [coco_content()["images"][0] | {"height": 30, "width": 30}]
    folder = make_coco(tmp_path, images=images)
    for split in ("train", "val"):
        save_turned(tmp_path / f"{split}2017/a.jpg", (30, 30))
    data = load("coco", folder)
    assert "--exif ignore" in said(data)
    upright = Reader(data.train).read(0)[0]
    stored = Reader(load("coco", folder, exif="ignore").train).read(0)[0]
    assert torch.equal(torch.rot90(stored, -1, (1, 2)), upright)


# Classes without objects


def test_a_class_without_validation_objects_counts_in_no_mean():
    truth = {
        "boxes": torch.tensor([[2.0, 2, 8, 8]]),
        "labels": torch.tensor([0]),
        "iscrowd": torch.tensor([0]),
        "area": torch.tensor([64.0]),
    }
    detections = {
        "boxes": np.array([[2.0, 2, 8, 8], [1, 1, 4, 4]]),
        "scores": np.array([0.9, 0.8]),
        "labels": np.array([0, 1]),
    }
    record = Records.of_image(0, (20, 20), truth, detections)
    found = average_precision([record], ["a", "b"])
    assert found.metrics["ap"] == pytest.approx(1) and list(found.ap_per_class) == ["a"]


def test_no_validation_object_is_refused_with_the_first_reason(tmp_path):
    folder = make_coco(tmp_path)
    outside = annotation(bbox=[90, 90, 5, 5])
    write(tmp_path / "annotations/instances_val2017.json", coco_content(**outside))
    message = refused("coco", tmp_path)
    assert "No validation image" in message and "lies outside the image" in message
    assert "val2017/a.jpg" in message
    write(tmp_path / "annotations/instances_val2017.json", coco_content(annotations=[]))
    assert "val2017/a.jpg: has no annotation" in refused("coco", tmp_path)
    write(tmp_path / "annotations/instances_val2017.json", coco_content())
    write(tmp_path / "annotations/instances_train2017.json", coco_content(**outside))
    assert "No training image" in refused("coco", tmp_path)
    assert folder


def test_test_data_that_validate_are_announced(tmp_path):
    make_coco(tmp_path / "coco", "{}/_annotations.coco.json", "{}")
    make_yolo(tmp_path / "yolo")
    make_voc(tmp_path / "voc", voc_object())
    (tmp_path / "coco/val").rename(tmp_path / "coco/test")
    for kind in ("images", "labels"):
        (tmp_path / f"yolo/{kind}/val").rename(tmp_path / f"yolo/{kind}/test")
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "val.txt").rename(lists / "test.txt")
    for source in ("coco", "yolo", "voc"):
        assert "test is used to validate" in said(load(source, str(tmp_path / source)))


# CSV


def write_csv(root: Path, text: str, name="{}.csv", images="images") -> Path:
    for split in ("train", "val"):
        write(root / name.format(split), text)
        for image in "ab":
            save_image(root / images.format(split) / f"{image}.jpg")
    return root


HEADERS = [
    "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,30,20,cat,2,3,12,9\nb.jpg,30,20,dog,0,0,5,5\n",
    "class,x1,y1,x2,y2,image_path\ncat,2,3,12.0,9,images\\a.jpg\ndog,0,0,5,5,/elsewhere/images/b.jpg\n",
    "images/a.jpg,2,3,12,9,cat\nimages/b.jpg,0,0,5,5,dog\n",
]


@pytest.mark.parametrize("text", HEADERS)
@pytest.mark.parametrize(
    "name", ["{}.csv", "{}_labels.csv", "data/{}_labels.csv", "{}/_annotations.csv"]
)
def test_csv(tmp_path, text, name):
    data = load("csv", str(write_csv(tmp_path, text, name)))
    assert data.classes == ["cat", "dog"] and paths_of(data.train) == ["a.jpg", "b.jpg"]
    assert truth_of(data)["boxes"].tolist() == [[2, 3, 10, 6]]
    assert truth_of(data, 1)["labels"].tolist() == [1]


def test_csv_images_without_objects_and_bad_lines(tmp_path):
    header = "filename,class,xmin,ymin,xmax,ymax\n"
    data = load("csv", str(write_csv(tmp_path, header + "a.jpg,,,,,\nb.jpg,x,1,1,4,4\n")))
    assert [len(truth_of(data, n)["labels"]) for n in (0, 1)] == [0, 1]
    for line, words in (
        ("a.jpg,x,1,1,4", "Line 2"),
        ("a.jpg,x,1,one,4,4", "'one'"),
        ("a.jpg,,1,1,4,4", "no class"),
        ("gone.jpg,x,1,1,4,4", "gone.jpg, which is not there"),
        ("a.jpg,x,0.1,0.1,0.4,0.4", "shares"),
    ):
        assert words in refused("csv", write_csv(tmp_path, f"{header}{line}\n"))
    assert "must name the columns" in refused("csv", write_csv(tmp_path, "a,b\n1,2\n"))


# labelme


def make_labelme(root: Path, beside=True, **changes) -> Path:
    shapes = [
        {"label": "cat", "points": [[2, 3], [12, 3], [12, 9], [2, 9]], "shape_type": "polygon"},
        {"label": "dog", "points": [[20, 15], [15, 10]], "shape_type": "rectangle"},
        {"label": "dog", "points": [[10, 10], [10, 14]], "shape_type": "circle"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
    ]
    content = {
        "imagePath": "a.jpg",
        "imageHeight": 20,
        "imageWidth": 30,
        "shapes": shapes,
    } | changes
    for split in ("train", "val"):
        save_image(root / split / "a.jpg")
        write(root / split / ("a.json" if beside else "labels/a.json"), content)
    return root


@pytest.mark.parametrize("beside", [True, False])
def test_labelme(tmp_path, beside):
    data = load("labelme", str(make_labelme(tmp_path, beside)), **MASKS)
    truth = truth_of(data, with_masks=True)
    assert data.classes == ["cat", "dog"] and truth["labels"].tolist() == [0, 1, 1]
    expected = torch.tensor([[2.0, 3, 10, 6], [15, 10, 5, 5], [6, 6, 8, 8]], dtype=torch.float64)
    torch.testing.assert_close(truth["boxes"], expected)
    areas = instance_masks.decode(truth["rles"], (20, 30)).flatten(1).sum(1).tolist()
    assert areas[:2] == [60, 25] and areas[2] == pytest.approx(math.pi * 16, rel=0.1)
    assert "left out: 2 point" in said(data)
    save_image(tmp_path / "train/new.jpg")
    assert "new.json" in refused("labelme", tmp_path)
    assert len(load("labelme", str(tmp_path), skip_unlabelled=True).train) == 1


def test_labelme_files_are_those_of_their_own_images(tmp_path):
    root = make_labelme(tmp_path)
    save_image(root / "train/b/001.jpg")
    write(root / "train/b/001.json", (root / "train/a.json").read_text())
    write(root / "train/gone.json", (root / "train/a.json").read_text())
    write(root / "train/readme.txt", "x")
    data = load("labelme", str(root))
    assert "1 JSON file has no image" in said(data) and "gone.json" in said(data)
    assert "readme.txt" in said(data) and len(data.train) == 2
    save_image(root / "train/c/001.jpg")
    assert "There is no" in refused("labelme", root) and "c/001.json" in refused("labelme", root)
    data = load("labelme", str(root), skip_unlabelled=True)
    assert paths_of(data.train) == ["a.jpg", "001.jpg"] and len(data.train) == 2
    (root / "train/b/001.json").rename(root / "train/001.json")
    assert "001.json may be of" in refused("labelme", root)
    save_image(root / "train/a.png")
    write(root / "train/b/001.json", (root / "train/a.json").read_text())
    assert "there are 2 images and 1 JSON files" in refused("labelme", root)


def test_labelme_groups_and_what_is_ignored(tmp_path):
    square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    moved = [[[x + shift, y] for x, y in square] for shift in (0, 10, 20)]
    shapes = [
        {"label": "cat", "points": moved[0], "group_id": 3},
        {"label": "dog", "points": square, "group_id": 3},
        {"label": "cat", "points": moved[1], "group_id": 3},
        {"label": "__ignore__", "points": moved[2], "group_id": None},
    ]
    data = load("labelme", str(make_labelme(tmp_path, shapes=shapes)), **MASKS)
    truth = truth_of(data, with_masks=True)
    assert data.classes == ["cat", "dog"] and truth["labels"].tolist() == [0, 1, 0, 1]
    assert truth["iscrowd"].tolist() == [0, 0, 1, 1]
    assert truth["boxes"].tolist() == [[0, 0, 14, 4], [0, 0, 4, 4], *[[20, 0, 4, 4]] * 2]
    assert instance_masks.decode(truth["rles"], (20, 30)).flatten(1).sum(1).tolist()[0] == 32
    masks = load_masks(SegmentationOptions(dataset="labelme", data_dir=str(tmp_path)))
    _, mask = MaskReader(masks.train, masks.rule).read(0)
    assert (mask[:4, 20:24] == 255).all() and (mask[:4, 10:14] == 1).all()


@pytest.mark.parametrize(
    "shape",
    [{"points": [[1, 1]]}, {"label": 3}, {"points": [[1, 1], [2, "x"], [3, 3]]}, {"points": 5}],
)
def test_labelme_shapes_that_cannot_be_used(tmp_path, shape):
    shapes = [
        {"label": "cat", "points": [[2, 3], [12, 3], [12, 9]], "shape_type": "polygon"} | shape
    ]
    assert "a.json is not a labelme file" in refused(
        "labelme", make_labelme(tmp_path, shapes=shapes)
    )


@pytest.mark.parametrize("source", ["yolo", "csv", "labelme"])
def test_one_folder_is_enough(tmp_path, source):
    shapes = [{"label": "cat", "points": [[2, 3], [12, 3], [12, 9], [2, 9]]}]
    lines = "filename,class,xmin,ymin,xmax,ymax\n"
    for number in range(20):
        save_image(tmp_path / f"images/{number}.jpg")
        lines += f"{number}.jpg,cat,2,3,12,9\n"
        if source == "yolo":
            write(tmp_path / f"labels/{number}.txt", BOX)
        elif source == "labelme":
            write(tmp_path / f"images/{number}.json", {"shapes": shapes})
    if source == "csv":
        write(tmp_path / "annotations.csv", lines)
    assert "--val_share" in refused(source, tmp_path)
    data = load(source, str(tmp_path), fold="1/2")
    names = paths_of(data.train) + paths_of(data.val)
    assert sorted(names) == sorted(f"{number}.jpg" for number in range(20))
    assert paths_of(load(source, str(tmp_path), fold="2/2").val) == paths_of(data.train)
    assert truth_of(data)["labels"].tolist() == [0] and "held out" in said(data)


# Masks for segmentation


@pytest.mark.parametrize("source", ["coco", "yolo", "labelme"])
def test_semantic_masks_are_drawn_from_outlines(tmp_path, source):
    if source == "coco":
        folder = make_coco(tmp_path)
    elif source == "yolo":
        folder = make_yolo(tmp_path, "1 .1 .2 .5 .2 .5 .8 .1 .8\n0 .2 .4 .3 .4 .3 .6 .2 .6\n")
    else:
        folder = make_labelme(tmp_path)
    options = SegmentationOptions(dataset=source, data_dir=str(folder))
    options.check()
    data = load_masks(options)
    image, mask = MaskReader(data.train, data.rule).read(0)
    assert data.classes == ["background", "cat", "dog"] and mask.shape == image.shape[1:]
    counts = torch.bincount(mask.flatten(), minlength=256)
    if source == "coco":  # a dog of 60 pixels, and a crowd in the first two columns
        assert counts[2] == 60 and counts[255] == 40 and counts[0] == 500
        assert (mask[3:9, 2:12] == 2).all()
    elif source == "yolo":  # the smaller object lies on top
        assert counts[2] == 144 - 12 and counts[1] == 12 and (mask[8:12, 6:9] == 1).all()
    else:
        assert (mask[10:15, 15:20] == 2).all() and counts[1] + counts[2] > 100


def test_semantic_masks_need_outlines(tmp_path):
    make_yolo(tmp_path)
    with pytest.raises(UserError, match="an outline") as caught:
        load_masks(SegmentationOptions(dataset="yolo", data_dir=str(tmp_path)))
    assert is_one_sentence(str(caught.value))


# datumaro


def test_datumaro_missing_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datumaro", None)
    (tmp_path / "x").touch()
    assert "requirements-extra.txt" in refused("datumaro", tmp_path)
