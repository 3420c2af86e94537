"""Segmentation data in folders as tools write them: which mask belongs to which image."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from errors import UserError
from tasks.segmentation.check import check_data
from tasks.segmentation.dataset import Reader
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import load_data
from tests.test_data import is_one_sentence, rows_of, save_image, save_mask


def options(root: Path, **given) -> SegmentationOptions:
    return SegmentationOptions(dataset="folder", data_dir=str(root), **given)


def load(root: Path, **given):
    return load_data(options(root, **given))


def write(root: Path, images: list[str], masks: list[str], classes="a\nb\nc\n") -> Path:
    """Images, and masks whose first row is the number of the image."""
    for number, image in enumerate(images):
        save_image(root / image)
        if number < len(masks):
            save_mask(root / masks[number], rows_of(number % 3))
    (root / "classes.txt").write_text(classes)
    return root


def first_rows(data, split="train") -> dict[str, int]:
    reader = Reader(getattr(data, split), data.rule)
    return {Path(reader.name(i)).stem: int(reader.read(i)[1][0, 0]) for i in range(len(reader))}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{0}/images/{1}.jpg", "{0}/masks/{1}.jpg.png"),
        ("{0}/images/{1}_sat.jpg", "{0}/masks/{1}_mask.png"),
        ("{0}/{1}_sat.jpg", "{0}/{1}_mask.png"),  # DeepGlobe
        ("{0}/{1}.jpg", "{0}/{1}_mask.png"),  # Roboflow
        ("{0}/images/{1}.jfif", "{0}/Masks/{1}.PNG"),
        ("images/{0}/{1}.JPG", "labels/{0}/{1}_label.tif"),
        ("{0}/Images/IMG{1}.jpg", "{0}/masks/img{1}.png"),
    ],
)
@pytest.mark.parametrize("splits", [("train", "val"), ("Train", "VALID")])
def test_usual_names_of_masks(tmp_path, image, mask, splits):
    for split in splits:
        names = [[kind.format(split, n) for n in "012"] for kind in (image, mask)]
        write(tmp_path, *names)
    data = load(tmp_path)
    for split in ("train", "val"):
        found = first_rows(data, split)
        assert sorted(found.values()) == [0, 1, 2]
        assert all(str(value) in stem for stem, value in found.items())


def test_roboflow_s_class_file_lies_with_the_images(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, [f"{split}/a_jpg.rf.1.jpg"], [f"{split}/a_jpg.rf.1_mask.png"])
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n1, tree\n")
    (tmp_path / "classes.txt").unlink()
    data = load(tmp_path)
    assert data.classes == ["ground", "tree"] and len(data.val) == 1
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value, Class\n0, tree\n1, ground\n")
    with pytest.raises(UserError, match="name other classes"):
        load(tmp_path)


def test_one_folder_is_enough(tmp_path):
    names = [f"{number:02}" for number in range(30)]
    write(tmp_path, [f"images/{n}.jpg" for n in names], [f"masks/{n}.png" for n in names])
    with pytest.raises(UserError, match="--val_share"):
        load(tmp_path)
    data = load(tmp_path, val_share=0.3)
    assert len(data.train) + len(data.val) == 30 and 3 <= len(data.val) <= 15
    assert any("held out" in note for note in data.notes)
    folds = [load(tmp_path, fold=f"{number}/3").val["image"][:] for number in (1, 2, 3)]
    assert sorted(c["path"] for fold in folds for c in fold) == [
        str(tmp_path / f"images/{n}.jpg") for n in names
    ]


def test_a_test_split_that_validates_is_announced_or_left_alone(tmp_path):
    for split in ("train", "Test"):
        names = [f"{split}/{{}}/{n}" for n in range(6)]
        write(
            tmp_path,
            [n.format("images") + ".jpg" for n in names],
            [n.format("masks") + ".png" for n in names],
        )
    assert any("no split val" in note for note in load(tmp_path).notes)
    data = load(tmp_path, val_share=0.2)
    assert len(data.train) + len(data.val) == 6
    assert all("/train/" in cell["path"] for cell in data.val["image"][:])


def make(root: Path) -> Path:
    for split in ("train", "val"):
        names = [f"{split}/{{}}/{n}" for n in range(3)]
        write(
            root,
            [n.format("images") + ".jpg" for n in names],
            [n.format("masks") + ".png" for n in names],
        )
    return root


def test_images_without_masks_are_refused_or_left_out(tmp_path):
    make(tmp_path)
    for number in (0, 1):
        (tmp_path / f"train/masks/{number}.png").unlink()
    with pytest.raises(
        UserError, match=r"train/images/0\.jpg has no mask.*\(1 more fault"
    ) as caught:
        load(tmp_path)
    assert is_one_sentence(str(caught.value))
    data = load(tmp_path, skip_unlabelled=True)
    assert len(data.train) == 1 and any("2 images without a mask" in note for note in data.notes)


def test_masks_and_images_that_are_not_one_to_one_are_refused(tmp_path):
    make(tmp_path)
    save_mask(tmp_path / "train/masks/0.tif", rows_of(1))
    with pytest.raises(UserError, match="has several masks"):
        load(tmp_path)
    (tmp_path / "train/masks/0.tif").unlink()
    save_image(tmp_path / "train/images/1.png")
    with pytest.raises(UserError, match="have the same mask"):
        load(tmp_path)


def test_files_that_are_no_images_are_counted(tmp_path):
    make(tmp_path)
    (tmp_path / "train/images/IMG_1.heic").touch()
    (note,) = [note for note in load(tmp_path).notes if "left out" in note]
    assert "1 file is left out" in note and "IMG_1.heic" in note


def test_masks_are_resized_where_asked_and_where_it_distorts_nothing(tmp_path):
    make(tmp_path)
    large = np.kron(rows_of(2), np.ones((2, 2), np.uint8))
    save_mask(tmp_path / "train/masks/0.png", large)
    data = load(tmp_path)
    with pytest.raises(UserError, match="--resize_masks"):
        Reader(data.train, data.rule).read(0)
    assert (Reader(data.train, data.rule, True).read(0)[1].numpy() == rows_of(2)).all()
    save_mask(tmp_path / "train/masks/0.png", rows_of(2, (40, 30)))
    with pytest.raises(UserError, match="would distort"):
        Reader(data.train, data.rule, True).read(0)
    save_mask(tmp_path / "train/masks/0.png", rows_of(2, (30, 20)))
    with pytest.raises(UserError, match="EXIF"):
        Reader(data.train, data.rule, True).read(0)


def test_smoothed_masks_are_named(tmp_path):
    make(tmp_path)
    circle = (np.hypot(*np.mgrid[-40:40, -40:40]) < 25).astype(np.uint8) * 255
    small = Image.fromarray(circle).resize((51, 51), Image.Resampling.BICUBIC)
    small.save(tmp_path / "train/masks/0.png")
    save_image(tmp_path / "train/images/0.jpg", size=(51, 51))
    (tmp_path / "classes.txt").write_text("background 0 0 0\nobject 255 255 255\n")
    for classes in (None, "classes.txt"):
        if classes is None:
            (tmp_path / "classes.txt").rename(tmp_path / "kept")
            with pytest.raises(UserError, match=r"0\.png holds \d+ values and looks smoothed"):
                load(tmp_path)
            (tmp_path / "kept").rename(tmp_path / "classes.txt")
        else:
            data = load(tmp_path)
            with pytest.raises(UserError, match=r"0\.png holds the value .* looks smoothed"):
                Reader(data.train, data.rule).read(0)


def test_hub_samples_without_a_mask_can_be_left_out(tmp_path):
    from tests.test_data import hub_rows

    rows = hub_rows(6, 1).to_dict()
    rows["label_map"][2] = None
    features = datasets.Features({"pixels": datasets.Image(), "label_map": datasets.Image()})
    columns = {name: rows[name] for name in features}
    split = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": split, "val": split}).save_to_disk(str(tmp_path / "saved"))
    given = {"image_column": "pixels", "mask_column": "label_map", "class_names": ["a", "b"]}
    wanted = SegmentationOptions(dataset=f"hub:{tmp_path / 'saved'}", **given, skip_unlabelled=True)
    data = load_data(wanted)
    assert len(data.train) == len(data.val) == 5
    assert any("2 samples without a mask" in note for note in data.notes)


def test_check_data_lists_every_fault_and_what_looks_wrong(tmp_path, capsys):
    import json

    make(tmp_path)
    for number in range(3, 6):
        save_image(tmp_path / f"train/images/{number}.jpg")
    (tmp_path / "train/images/0.jpg").write_bytes(b"no image")
    save_mask(tmp_path / "val/masks/1.png", rows_of(77))
    Image.new("RGB", (30, 20), (5, 5, 5)).save(tmp_path / "val/images/2.jpg")
    report = tmp_path / "report.json"
    status = check_data(options(tmp_path, check_data=str(report), num_workers=0))
    printed = capsys.readouterr().out
    content = json.loads(report.read_text())
    assert status == 1 and "faults: 5 of 3 kinds" in printed and "3 times:" in printed
    files = {Path(fault["file"]).name for fault in content["faults"]}
    assert {"3.jpg", "4.jpg", "5.jpg", "0.jpg", "1.jpg"} == files
    assert all(fault["sentence"] in printed for fault in content["faults"])
    kinds = {each["kind"]: each["seen"] for each in content["suspicious"]}
    assert kinds["constant pictures"] == [str(tmp_path / "val/images/2.jpg")]
    assert len(kinds["pictures in both splits"]) >= 1 and "0.jpg" in kinds["names in both splits"]
    assert str(tmp_path / "train/images/1.jpg") not in kinds.get("masks of one class", [])
    assert content["classes"] == ["a", "b", "c"] and content["splits"]["val"]["bad"] == 1


def test_check_data_of_what_has_no_layout_is_a_report_too(tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    report = tmp_path / "report.json"
    assert check_data(options(tmp_path, check_data=str(report))) == 1
    assert "must hold train/images" in capsys.readouterr().out
    with pytest.raises(UserError, match="folder that exists"):
        check_data(options(tmp_path, check_data=str(tmp_path / "none/report.json")))


def test_options_that_do_nothing_are_not_offered(tmp_path):
    with pytest.raises(UserError, match="--resize_masks is for"):
        SegmentationOptions(dataset="coco", data_dir=str(tmp_path), resize_masks=True).check()
    for split in ("train", "val"):
        save_image(tmp_path / split / "a.png")
        (tmp_path / f"{split}annot").mkdir()
    with pytest.raises(UserError, match="has no mask") as caught:
        load_data(SegmentationOptions(dataset="camvid", data_dir=str(tmp_path)))
    assert "--skip_unlabelled" not in str(caught.value)
