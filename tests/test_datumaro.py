"""What datumaro reads: its boxes, polygons and masks as objects. Runs where it is installed."""

import json
from pathlib import Path

import pytest
import torch

from errors import UserError
from tasks.detection import instance_masks
from tests.test_detection_data import MASKS, load, save_image, truth_of

pytest.importorskip("datumaro")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def boxes_of(data, index=0) -> torch.Tensor:
    return truth_of(data, index)["boxes"]


def test_kitti(tmp_path):
    line = "{} 0.00 0 -1.58 {} 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
    for split in ("train", "val"):
        for number in range(2):
            save_image(tmp_path / f"{split}/image_2/{number:06d}.png")
            text = line.format("Car", "2 3 12 9") + line.format("Pedestrian", "20 10 35 18")
            write(tmp_path / f"{split}/label_2/{number:06d}.txt", text)
    data = load("datumaro", str(tmp_path), data_format="kitti")
    assert data.classes == ["Car", "Pedestrian"] and len(data.train) == len(data.val) == 2
    assert boxes_of(data).tolist() == [[2, 3, 10, 6], [20, 10, 10, 8]]  # clipped to the image
    with pytest.raises(UserError, match="no format kity"):
        load("datumaro", str(tmp_path), data_format="kity")
    with pytest.raises(UserError, match="--data_format"):
        load("datumaro", str(tmp_path))


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><id>1</id><name>t</name><size>20</size><mode>annotation</mode>
<labels><label><name>cat</name><attributes/></label><label><name>dog</name><attributes/></label>
<label><name>unused</name><attributes/></label></labels></task></meta>
{images}</annotations>"""
CVAT_IMAGE = """<image id="{n}" name="{n}.jpg" width="30" height="20">
<box label="dog" occluded="0" xtl="2" ytl="3" xbr="12" ybr="9" z_order="0"></box>
<polygon label="cat" occluded="0" points="20,10;25,10;25,15;20,15" z_order="0"></polygon>
<points label="cat" occluded="0" points="5,5" z_order="0"></points></image>"""


def test_cvat_in_one_folder_with_polygons(tmp_path):
    for number in range(12):
        save_image(tmp_path / f"images/{number}.jpg")
    images = "".join(CVAT_IMAGE.format(n=number) for number in range(12))
    write(tmp_path / "annotations.xml", CVAT.format(images=images))
    data = load("datumaro", str(tmp_path), data_format="cvat", val_share=0.3)
    assert data.classes == ["cat", "dog"] and len(data.train) + len(data.val) == 12
    found = dict(zip(truth_of(data)["labels"].tolist(), boxes_of(data).tolist(), strict=True))
    assert found == {1: [2, 3, 10, 6], 0: [20, 10, 5, 5]}
    assert "12 points" in " ".join(data.notes)
    masked = load("datumaro", str(tmp_path), data_format="cvat", val_share=0.3, **MASKS)
    truth = truth_of(masked, with_masks=True)
    assert truth["labels"].tolist() == [0]  # the box has no mask
    assert instance_masks.decode(truth["rles"], (20, 30)).sum() == 25


def test_wider_face(tmp_path):
    for split in ("train", "val"):
        save_image(tmp_path / f"WIDER_{split}/images/0--Parade/0_Parade_{split}.jpg")
        text = f"0--Parade/0_Parade_{split}.jpg\n2\n2 3 10 6 2 0 0 0 0 0\n20 10 5 5 0 0 0 0 0 0\n"
        write(tmp_path / f"wider_face_split/wider_face_{split}_bbx_gt.txt", text)
    data = load("datumaro", str(tmp_path), data_format="wider_face")
    assert boxes_of(data).tolist() == [[2, 3, 10, 6], [20, 10, 5, 5]]


def test_an_unreadable_data_set_is_one_sentence(tmp_path):
    write(tmp_path / "annotations.xml", "<annotations><image")
    with pytest.raises(UserError, match="datumaro can't read") as caught:
        load("datumaro", str(tmp_path), data_format="cvat")
    assert "\n" not in str(caught.value)
    write(tmp_path / "x.json", json.dumps({}))
