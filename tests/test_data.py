"""Segmentation data: every source's layout, masks, augmentation, determinism and bad input."""

import colorsys
import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data import decode, synthetic
from data.colors import FILL, ColorJitter
from data.decode import SampleError, read_image, read_mask
from data.masks import IGNORE, MaskRule, default_colors
from data.samples import collate, stack_images
from data.stream import SampleKey
from errors import UserError
from tasks.segmentation.check import survey
from tasks.segmentation.dataset import (
    EvalDataset,
    Reader,
    TrainDataset,
    collate_eval,
    collate_train,
)
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.sources import SegmentationData, load_data
from tasks.segmentation.transforms import RandomScaledCrop, eval_transform, train_transform

# torchvision 0.29 announces the removal of its decoders; data/decode.py works without them too.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def load(dataset="synthetic", data_dir=None, **options) -> SegmentationData:
    data_dir = data_dir and str(data_dir)
    return load_data(SegmentationOptions(dataset=dataset, data_dir=data_dir, **options))


def train_reader(data: SegmentationData) -> Reader:
    return Reader(data.train, data.rule)


@pytest.fixture(scope="module")
def shapes():
    return load(limit_train=24, limit_val=8, seed=3, image_size=[64, 96])


def save_image(path: Path, size=(20, 30), seed=0, **options) -> None:
    """A noise image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def save_mask(path: Path, values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def save_palette_mask(path: Path, values, colors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.uint8)
    picture = Image.new("P", values.shape[::-1])
    picture.putdata(values.flatten().tolist())
    picture.putpalette([channel for color in colors for channel in color])
    picture.save(path)


def rows_of(value: int, size=(20, 30)) -> np.ndarray:
    """A mask with ``value`` in its first row and 0 elsewhere."""
    mask = np.zeros(size, np.uint8)
    mask[0] = value
    return mask


def make_folder(root: Path, count=3, value=2, classes="sky\nroad\ntree\n") -> Path:
    for split in ("train", "val"):
        for number in range(count):
            save_image(root / split / "images" / f"{number}.jpg", seed=number)
            save_mask(root / split / "masks" / f"{number}.png", rows_of(value))
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def folder_dataset(root: Path) -> TrainDataset:
    return TrainDataset(train_reader(load("folder", root)), train_transform((16, 16)), seed=0)


def stream_keys(*indices: int, epoch=0) -> list[SampleKey]:
    return [SampleKey(epoch, index, position) for position, index in enumerate(indices)]


def is_one_sentence(message: str) -> bool:
    body = message.removesuffix(".")
    return message.endswith(".") and "\n" not in message and ". " not in body and len(message) < 600


# Sources


def first_mask(data) -> torch.Tensor:
    return train_reader(data).read(0)[1]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{}/images", "{}/masks"),
        ("images/{}", "annotations/{}"),
        ("{}_images", "{}_masks"),
        ("{}", "{}annot"),
        ("{}", "{}/masks"),
    ],
)
def test_folder_arrangements(tmp_path, images, masks):
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            save_image(tmp_path / images.format(split) / f"a/{number}.jpg")
            save_mask(tmp_path / masks.format(split) / f"a/{number}.png", rows_of(1))
    data = load("folder", tmp_path, class_names=["a", "b"])
    assert (len(data.train), len(data.val)) == (3, 2)
    assert first_mask(data)[0].eq(1).all()


def test_folder_pairs_by_stem(tmp_path):
    for split in ("train", "val"):
        for value, stem in enumerate(("b", "a", "c")):
            save_image(tmp_path / split / "images" / f"{stem}.jpg")
            save_mask(tmp_path / split / "masks" / f"{stem}_mask.png", rows_of(value))
        save_mask(tmp_path / split / "masks" / "of_no_image_mask.png", rows_of(7))
    data = load("folder", tmp_path, class_names=["x", "y", "z"])
    reader = train_reader(data)
    found = {Path(reader.name(i)).stem: int(reader.read(i)[1][0, 0]) for i in range(3)}
    assert found == {"b": 0, "a": 1, "c": 2}


def test_folder_counts_unnamed_classes_and_says_so(tmp_path):
    data = load("folder", make_folder(tmp_path, value=4, classes=None))
    assert len(data.classes) == len(data.colors) == 5
    assert "5 classes" in data.notes[0]
    save_mask(tmp_path / "train/masks/0.png", rows_of(255))  # ignored pixels are no class
    save_mask(tmp_path / "train/masks/1.png", rows_of(255))
    save_mask(tmp_path / "train/masks/2.png", rows_of(1))
    assert len(load("folder", tmp_path).classes) == 2


@pytest.mark.parametrize(
    "content",
    [
        "name,r,g,b\nroad,10,20,30\nvoid,0,0,0\nbus stop,200,100,50\n",
        "10 20 30 road\n0 0 0 void\n200 100 50 bus stop\n",
        "road\t10\t20\t30\nvoid\t0\t0\t0\nbus stop\t200\t100\t50\n",
    ],
)
def test_colour_coded_masks(tmp_path, content):
    make_folder(tmp_path, classes=content)
    coded = np.full((20, 30, 3), (10, 20, 30), np.uint8)
    coded[3], coded[4] = (200, 100, 50), (0, 0, 0)
    Image.fromarray(coded).save(tmp_path / "train/masks/0.png")
    data = load("folder", tmp_path)
    assert data.classes == ["road", "bus stop"]
    assert data.colors == [(10, 20, 30), (200, 100, 50)]
    mask = first_mask(data)
    assert mask[0].eq(0).all() and mask[3].eq(1).all() and mask[4].eq(IGNORE).all()


def test_class_file_json_and_void(tmp_path):
    (tmp_path / "names.json").write_text('{"0": "void", "1": "a", "3": "b"}')
    make_folder(tmp_path, value=3)
    names = str(tmp_path / "names.json")
    data = load("folder", tmp_path, class_names=names)
    assert data.classes == ["a", "b"]
    assert first_mask(data)[0].eq(1).all() and first_mask(data)[1].eq(IGNORE).all()


def test_camvid(tmp_path):
    for split in ("train", "val"):
        save_image(tmp_path / "CamVid" / split / "f1.png")
        save_mask(tmp_path / "CamVid" / f"{split}annot/f1.png", rows_of(11))
    data = load("camvid", tmp_path)
    assert len(data.classes) == len(data.colors) == 11
    assert first_mask(data)[0].eq(IGNORE).all() and first_mask(data)[1].eq(0).all()


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_1", "2007_2"):
        save_image(root / f"JPEGImages/{name}.jpg")
        values = rows_of(15)
        values[1] = 255
        save_palette_mask(root / f"SegmentationClass/{name}.png", values, default_colors(256))
    save_image(root / "JPEGImages/without_mask.jpg")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    data = load("voc", tmp_path)
    assert (len(data.train), len(data.val), len(data.classes)) == (1, 1, 21)
    mask = first_mask(data)
    assert data.classes[int(mask[0, 0])] == "person"
    assert mask[1].eq(IGNORE).all() and mask[2].eq(0).all()
    (lists / "val.txt").write_text("2007_9\n")
    with pytest.raises(UserError, match=r"2007_9\.jpg"):
        load("voc", tmp_path)


def test_cityscapes(tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[0], values[1], values[2], values[3] = 7, 33, 29, 255  # 29, caravan: not evaluated
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000000_000019"
        save_image(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
        save_mask(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", values)
        save_mask(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png", values)
        save_image(tmp_path / f"gtFine/{stem}_gtFine_color.png")
    data = load("cityscapes", tmp_path)
    assert len(data.train) == 1 and len(data.classes) == 19
    assert first_mask(data)[:4, 0].tolist() == [0, 18, IGNORE, IGNORE]


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split in ("training", "validation"):
        save_image(root / f"images/{split}/ADE_1.jpg")
        save_mask(root / f"annotations/{split}/ADE_1.png", rows_of(150))
    data = load("ade20k", tmp_path)
    assert len(data.classes) == len(data.colors) == 150
    assert first_mask(data)[:2, 0].tolist() == [149, IGNORE]
    lines = [f"{i}\t0.1\t1\t1\t0\tthing {i}, other" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\t...", *lines]))
    assert load("ade20k", tmp_path).classes[149] == "thing 150"


def picture(values) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def hub_rows(count: int, value: int) -> datasets.Dataset:
    image = np.zeros((8, 8, 3), np.uint8)
    columns = {
        "pixels": [picture(image)] * count,
        "label_map": [picture(np.full((8, 8), value))] * count,
        "number": list(range(count)),
    }
    features = {"pixels": datasets.Image(), "label_map": datasets.Image()}
    features["number"] = datasets.Value("int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


COLUMNS = {"image_column": "pixels", "mask_column": "label_map"}


def test_hub_saved_to_disk(tmp_path):
    splits = {"train": hub_rows(5, 1), "validation": hub_rows(2, 0)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    name = f"hub:{tmp_path / 'saved'}"
    data = load(name, **COLUMNS, class_names=["a", "b"])
    assert (len(data.train), len(data.val)) == (5, 2)
    assert first_mask(data).eq(1).all()
    with pytest.raises(UserError, match=r"pixels, label_map, number") as caught:
        load(name)
    assert is_one_sentence(str(caught.value)) and "--image_column" in str(caught.value)
    with pytest.raises(UserError, match=r"number of .* hold images.*--mask_column"):
        load(name, image_column="pixels", mask_column="number")


def test_hub_parquet_folder_without_validation_holds_out(tmp_path):
    hub_rows(20, 1).to_parquet(str(tmp_path / "data/train-00000.parquet"))
    data = load(f"hub:{tmp_path}", **COLUMNS)
    assert len(data.train) + len(data.val) == 20 and 1 <= len(data.val) <= 5
    assert any("held out" in note for note in data.notes)
    assert len(data.classes) == 2


def test_hub_out_of_reach(monkeypatch):
    def fail(*_):
        raise ConnectionError("Couldn't reach 'some/set' on the Hub\n  a traceback")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match="some/set") as caught:
        load("hub:some/set")
    assert is_one_sentence(str(caught.value))


def test_synthetic(shapes):
    again = load(limit_train=24, limit_val=8, seed=3, image_size=[64, 96])
    other = load(limit_train=24, limit_val=8, seed=4, image_size=[64, 96])
    assert again.train[:] == shapes.train[:] != other.train[:]
    half = load(limit_train=12, limit_val=8, seed=3, image_size=[64, 96])
    assert half.train[:] == shapes.train.select(range(0, 24, 2))[:]
    assert not {row["image"]["bytes"] for row in shapes.train} & {
        row["image"]["bytes"] for row in shapes.val
    }
    found = survey(train_reader(shapes))
    assert (found.images[:7] > 2).all() and found.pixels[-1] == 0
    assert 0.4 < found.pixels[0] / found.pixels.sum() < 0.85  # the ground alone scores badly


def test_synthetic_colour_tells_the_class_of_some_shapes_only():
    right = []
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = synthetic.draw(rng, [synthetic.random_shape(rng, (64, 64))], (64, 64))
        if (scene.top == 0).any():
            color = scene.image[scene.top == 0].mean(axis=0) / 255
            guess = round(colorsys.rgb_to_hsv(*color)[0] * len(synthetic.SHAPES))
            right.append(synthetic.SHAPES[guess % 6] == scene.shapes[0].kind)
    assert 0.35 < np.mean(right) < 0.75  # chance is 0.17; the rest takes outlines


@pytest.mark.parametrize("kind", synthetic.SHAPES)
def test_shapes_lie_within_their_window(kind):
    shape = synthetic.Shape(kind, (40.0, 50.0), 20.0, angle=0.7, stretch=1.3)
    everywhere = shape.covers((slice(0, 90), slice(0, 110)))
    inside = np.zeros_like(everywhere)
    window = shape.window((90, 110))
    inside[window] = shape.covers(window)
    assert np.array_equal(everywhere, inside) and 150 < inside.sum() < 1600


def test_limits_are_evenly_spaced(tmp_path):
    make_folder(tmp_path, count=9)
    data = load("folder", tmp_path, limit_train=3, limit_val=50)
    stems = [Path(row["image"]["path"]).stem for row in data.train]
    assert stems == ["0", "3", "6"] and len(data.val) == 9


# Decoding


@pytest.mark.parametrize("count", [2, 4, 16, 256])
def test_palette_masks_give_ids_at_every_bit_depth(tmp_path, count):
    values = np.arange(15 * 7).reshape(15, 7) % count
    save_palette_mask(tmp_path / "m.png", values, default_colors(256)[::-1][:count])
    stored = read_mask({"path": str(tmp_path / "m.png"), "bytes": None}, "m").values
    assert np.array_equal(stored, values)


@pytest.mark.parametrize("with_torchvision", [True, False])
def test_every_kind_of_image_becomes_rgb(tmp_path, monkeypatch, with_torchvision):
    if not with_torchvision:
        monkeypatch.setattr(decode, "decode_image", None)
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    for mode, suffix in (
        ("L", "png"),
        ("L", "jpg"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("P", "png"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("RGB", "tif"),
        ("I;16", "png"),
    ):
        path = tmp_path / f"{mode[:1]}.{suffix}"
        picture = Image.fromarray(rgb)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        else:
            picture = picture.convert(mode)
        picture.save(path)
        for cell in (
            {"path": str(path), "bytes": None},
            {"path": None, "bytes": path.read_bytes()},
        ):
            image = read_image(cell, str(path))
            assert image.shape == (3, 6, 9) and image.dtype == torch.uint8, (mode, suffix)
            if mode not in ("P", "CMYK") and suffix != "webp":
                shown = rgb.mean(axis=2) if mode[0] in "LI" else rgb.transpose(2, 0, 1)
                error = np.abs(image.numpy() - shown.astype(float)).mean()
                assert error < (30 if mode[0] in "LI" else 1), (mode, suffix, error)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for suffix in ("jpg", "tif"):
        save_image(tmp_path / f"turned.{suffix}", size=(20, 30), exif=exif)
        cell = {"path": str(tmp_path / f"turned.{suffix}"), "bytes": None}
        assert read_image(cell, "turned").shape == (3, 30, 20)


def test_mask_rule_survives_pickling_and_needs_its_colours():
    rule = MaskRule.of_ids({0: 0}, [((9, 8, 7), 0)])
    coded = np.full((2, 2, 3), (9, 8, 7), np.uint8)
    rule(coded)
    assert len(pickle.dumps(rule)) < 2000
    assert pickle.loads(pickle.dumps(rule))(coded).eq(0).all()


# Augmentation and determinism


def test_same_bits_for_any_number_of_workers(shapes):
    transform = train_transform((48, 56), color_jitter=(0.4, 0.4, 0.4, 0.1))
    dataset = TrainDataset(train_reader(shapes), transform, seed=11)
    keys = stream_keys(*range(24)) + stream_keys(*range(12), epoch=1)
    runs = []
    for workers in (0, 1, 3):
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        loader = DataLoader(
            dataset,
            batch_size=6,
            sampler=keys,
            num_workers=workers,
            collate_fn=collate_train,
            generator=torch.Generator().manual_seed(workers),
        )
        batches = list(loader)
        assert torch.equal(torch.get_rng_state(), state)  # the main process is left alone
        runs.append({k: torch.cat([batch[k] for batch in batches]) for k in batches[0]})
    for run in runs[1:]:
        assert all(torch.equal(run[k], runs[0][k]) for k in runs[0])
    images, masks = runs[0]["image"], runs[0]["mask"]
    assert images.shape == (36, 3, 48, 56) and masks.shape == (36, 48, 56)
    assert images.dtype == masks.dtype == torch.uint8
    assert not torch.equal(images[0], images[24])  # the same sample in another epoch
    other = TrainDataset(train_reader(shapes), transform, seed=12)
    assert not torch.equal(other[keys[0]]["image"], images[0])


def positions(height=40, width=60) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose colours tell the place, and a mask that tells the same more coarsely."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y * 4, x * 4, torch.full_like(y, 7)]).to(torch.uint8)
    return image, ((y // 10) * 6 + x // 10).to(torch.uint8)


def apply(transform, image, mask, seed):
    from torchvision import tv_tensors

    torch.manual_seed(seed)
    return transform(tv_tensors.Image(image), tv_tensors.Mask(mask))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_crop_keeps_image_and_mask_together(factor):
    crop = RandomScaledCrop((32, 32), (factor, factor))
    tiles = set()
    for seed in range(60):
        image, mask = apply(crop, *positions(), seed)
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32)
        inside = mask != IGNORE
        y, x = image[0].float() / 4, image[1].float() / 4
        tile = (y // 10) * 6 + x // 10
        # Only pixels on a border between tiles may fall on either side.
        assert (tile[inside] != mask[inside]).float().mean() < 0.25
        middle = inside & ((y % 10 - 5).abs() < 3.4) & ((x % 10 - 5).abs() < 3.4)
        assert middle.any() and (tile[middle] == mask[middle]).all()
        tiles |= set(mask[inside].tolist())
    assert tiles == set(range(24))  # every part of the image is seen


def test_small_images_are_padded_with_mean_and_ignore():
    image, mask = torch.zeros(3, 10, 12, dtype=torch.uint8), torch.ones(10, 12, dtype=torch.uint8)
    corners = set()
    for seed in range(10):
        padded, labels = apply(RandomScaledCrop((32, 24), (1, 1)), image, mask, seed)
        assert labels.eq(1).sum() == 120 and labels.eq(IGNORE).sum() == 32 * 24 - 120
        assert padded[:, labels == IGNORE].eq(torch.tensor(FILL)[:, None]).all()
        assert padded[:, labels == 1].eq(0).all()
        corners.add(tuple(labels.eq(1).nonzero()[0].tolist()))
    assert len(corners) > 5


def test_scales_cover_their_range():
    crop = RandomScaledCrop((400, 400), (0.5, 2.0))
    areas = [apply(crop, *positions(), seed)[1].ne(IGNORE).sum() / 2400 for seed in range(60)]
    factors = torch.stack(areas).sqrt()
    assert 0.49 < factors.min() < 0.6 and 1.7 < factors.max() < 2.02
    assert 0.3 < (factors < 1).float().mean() < 0.7


def test_flip_turns_both_and_can_be_turned_off():
    plain = {"scale": (1, 1), "color_jitter": (0, 0, 0, 0)}
    image, mask = positions()
    flipped = apply(train_transform((40, 60), hflip=1, **plain), image, mask, 0)
    assert torch.equal(flipped[0], image.flip(-1)) and torch.equal(flipped[1], mask.flip(-1))
    same = apply(train_transform((40, 60), hflip=0, **plain), image, mask, 0)
    assert torch.equal(same[0], image) and torch.equal(same[1], mask)


@pytest.mark.parametrize("place", range(4))
def test_color_jitter_matches_its_meaning(place):
    strengths = [0.0] * 4
    strengths[place] = 0.4
    image = torch.randint(60, 180, (3, 16, 16), dtype=torch.uint8)
    mask = torch.zeros(16, 16, dtype=torch.uint8)
    luma = torch.tensor([0.299, 0.587, 0.114])

    def grey(picture):
        return (luma[:, None, None] * picture).sum(0)

    jittered = [apply(ColorJitter(*strengths), image, mask, seed) for seed in range(5)]
    assert all(torch.equal(labels, mask) for _, labels in jittered)
    assert len({changed.sum().item() for changed, _ in jittered}) > 1
    before = image.float()
    for changed, _ in jittered:
        after = changed.float()
        if place == 0:  # brightness scales
            ratio = (after / before)[after < 254]
            assert ratio.std() < 0.01 and 0.59 < ratio.mean() < 1.41
        elif place == 1:  # contrast keeps the mean grey
            assert abs(grey(after).mean() - grey(before).mean()) < 0.6
        elif place == 2:  # saturation keeps every pixel's grey
            assert (grey(after) - grey(before)).abs().max() < 1.5
        else:  # hue keeps every pixel's sum of channels
            unclipped = ((after > 0) & (after < 255)).all(0)
            assert ((after - before).sum(0).abs()[unclipped] < 2).all()
    nothing = apply(ColorJitter(0, 0, 0, 0), image, mask, 0)[0]
    assert torch.equal(nothing, image)


def test_eval_resizes_the_image_only(shapes):
    reader = Reader(shapes.val, shapes.rule)
    image, mask = reader.read(3)
    resized = EvalDataset(reader, eval_transform([20, 24]))[3]
    assert resized["image"].shape == (3, 20, 24) and torch.equal(resized["mask"], mask)
    stored = EvalDataset(reader, eval_transform(None))[3]
    assert torch.equal(stored["image"], image) and torch.equal(stored["mask"], mask)


def test_eval_groups_by_size(tmp_path):
    make_folder(tmp_path, count=5)
    for number, size in ((1, (20, 34)), (3, (20, 34)), (4, (28, 30))):
        save_image(tmp_path / f"val/images/{number}.jpg", size=size)
        save_mask(tmp_path / f"val/masks/{number}.png", rows_of(1, size))
    data = load("folder", tmp_path)
    dataset = EvalDataset(Reader(data.val, data.rule), eval_transform(None))
    loader = DataLoader(dataset, batch_size=5, collate_fn=collate_eval, num_workers=1)
    (groups,) = list(loader)
    members = [[0, 2], [1, 3], [4]]
    assert [tuple(group["image"].shape) for group in groups] == [
        (2, 3, 20, 30),
        (2, 3, 20, 34),
        (1, 3, 28, 30),
    ]
    for group, indices in zip(groups, members, strict=True):
        for kind in ("image", "mask"):
            assert torch.equal(group[kind], torch.stack([dataset[i][kind] for i in indices]))


# Bad input


def spoil_jpeg(root):
    path = root / "train/images/1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return path


def spoil_jpeg_with_text(root):
    path = root / "train/images/1.jpg"
    path.write_text("this is no picture")
    return path


def spoil_by_emptying(root):
    path = root / "train/images/1.jpg"
    path.write_bytes(b"")
    return path


def spoil_png(root):
    path = root / "train/masks/1.png"
    save_image(path, size=(20, 30))  # noise, so that much is cut off
    path.write_bytes(path.read_bytes()[:-700])
    return path


def spoil_size(root):
    path = root / "train/masks/1.png"
    save_mask(path, rows_of(1, (30, 20)))
    return path


def spoil_class(root):
    path = root / "train/masks/1.png"
    save_mask(path, rows_of(3))
    return path


def spoil_with_colours(root):
    path = root / "train/masks/1.png"
    save_image(path)
    return path


def spoil_with_instances(root):
    path = root / "train/masks/1.png"
    Image.fromarray(np.full((20, 30), 7001, np.uint16)).save(path)
    return path


def spoil_by_removing(root):
    path = root / "train/masks/1.png"
    path.unlink()
    return path


SPOILERS = [
    spoil_jpeg,
    spoil_jpeg_with_text,
    spoil_by_emptying,
    spoil_png,
    spoil_size,
    spoil_class,
    spoil_with_colours,
    spoil_with_instances,
    spoil_by_removing,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_bad_sample_is_named_in_one_sentence(tmp_path, spoil):
    dataset = folder_dataset(make_folder(tmp_path))
    path = str(spoil(tmp_path))
    before, bad, after = stream_keys(0, 1, 2)
    with pytest.raises(UserError) as caught:
        dataset[bad]
    assert path in str(caught.value) and is_one_sentence(str(caught.value))
    assert [fault.sentence for fault in survey(dataset.reader).faults] == [str(caught.value)]
    assert dataset[before] and dataset[after]


def test_bad_sample_in_a_worker_gives_the_same_sentence(tmp_path):
    dataset = folder_dataset(make_folder(tmp_path))
    path = str(spoil_class(tmp_path))
    messages = []
    for workers in (0, 2):
        loader = DataLoader(dataset, sampler=stream_keys(0, 1, 2), num_workers=workers)
        with pytest.raises(UserError) as caught:
            list(loader)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and path in messages[0] and is_one_sentence(messages[1])


def test_a_survey_lists_every_bad_sample_and_counts_the_rest(tmp_path):
    data = load("folder", make_folder(tmp_path, count=6, value=1))
    save_mask(tmp_path / "train/masks/4.png", rows_of(255))
    paths = [str(spoil_jpeg(tmp_path))]
    (tmp_path / "train/masks/3.png").unlink()
    paths.append(str(tmp_path / "train/masks/3.png"))
    for workers in (0, 2):
        found = survey(train_reader(data), workers)
        assert len(found.faults) == 2
        assert all(p in fault.sentence for p, fault in zip(paths, found.faults, strict=True))
        assert found.pixels.tolist() == [4 * 570, 3 * 30, 0, 30]
        assert found.images.tolist() == [4, 3, 0] and found.samples == 6
    assert "95.0 %" in found.lines(data.classes)[0] and "4 images" in found.lines(data.classes)[0]


def test_folders_that_hold_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/notes").mkdir(parents=True)
    for dataset in ("folder", "camvid", "voc", "cityscapes", "ade20k"):
        for folder, reason in (
            (None, "--data_dir"),
            ("none", "no data folder"),
            ("empty", "empty"),
        ):
            with pytest.raises(UserError, match=reason) as caught:
                load(dataset, folder and tmp_path / folder)
            assert is_one_sentence(str(caught.value))
            assert folder is None or str(tmp_path / folder) in str(caught.value)
        with pytest.raises(UserError, match="must hold") as caught:
            load(dataset, tmp_path / "other")
        assert is_one_sentence(str(caught.value)) and str(tmp_path / "other") in str(caught.value)


def test_folder_without_images_or_with_a_missing_mask(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "val/masks/2.png").unlink()
    with pytest.raises(UserError, match=r"val/images/2\.jpg has no mask") as caught:
        load("folder", tmp_path)
    assert is_one_sentence(str(caught.value))
    for path in (tmp_path / "val/images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no images in .*val/images"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"class_names": "half_coloured.txt"}, "to every class or to none"),
        ({"class_names": ["a", "a"]}, "a occurs twice"),
        ({"class_names": ["void"]}, "0 classes"),
        ({"class_names": "no_such_file.txt"}, r"no_such_file\.txt"),
    ],
)
def test_bad_class_lists(tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(make_folder(tmp_path))
    Path("half_coloured.txt").write_text("a 0 0 0\nb\n")
    with pytest.raises(UserError, match=reason) as caught:
        load("folder", tmp_path, **options)
    assert is_one_sentence(str(caught.value))


def test_unknown_data_set_lists_the_known():
    with pytest.raises(UserError, match=r"camvdi.*camvid.*hub"):
        load("camvdi")


def test_sample_error_keeps_its_message():
    assert str(SampleError("a.jpg is bad.")) == "a.jpg is bad."


def test_batches_hold_a_pixel_s_colours_side_by_side() -> None:
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    stored = [images[0], images[1].movedim(0, -1).contiguous().movedim(-1, 0), images[2][:, :, :]]
    batch = collate([{"image": image, "label": n} for n, image in enumerate(stored)], "image")
    assert list(batch) == ["image", "label"]
    assert torch.equal(batch["image"], images) and batch["label"].tolist() == [0, 1, 2]
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    clips = torch.randint(0, 256, (2, 4, 3, 5, 7), dtype=torch.uint8)
    stacked = stack_images(list(clips))
    assert torch.equal(stacked, clips)
    assert stacked.transpose(1, 2).is_contiguous(memory_format=torch.channels_last_3d)
