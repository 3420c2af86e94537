"""Where the files of YOLO's layout lie: data.yaml, the images of a split, and their text files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.class_files import read_numbered_names
from data.faults import Faults
from data.folders import TRAIN, VAL, Found, entries, find_files, named, split_folder
from data.numbers import whole
from data.paths import resolve
from data.textfiles import read_text, read_yaml
from errors import UserError
from tasks.detection.formats.splits import Place, unused_note

EXPECTED = "images/{train,val} and labels/{train,val}, or {train,val}/images and .../labels"
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
EMPTY = ("", "~", "null", "none")  # what a text file of options holds where there is nothing
OWN = (".txt", ".yaml", ".yml", ".data", ".names")  # of labels, lists and descriptions
MOST_NAMES = 10_000


@dataclass(frozen=True)
class Description:
    """What data.yaml or obj.data says.

    Attributes:
        file: the file; None where there is none.
        base: the folder to which the places are relative, beside the data folder.
        places: paths of a split's folders, or of lists of images, by the names of splits.
        names: of the classes, or none.
        listed: the file that lists the names; None where the description itself does.
        keypoints: numbers of keypoints that follow each box.
    """

    file: Path | None = None
    base: str = ""
    places: dict[str, list[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    listed: Path | None = None
    keypoints: int = 0


def read_description(root: Path) -> Description:
    """The file that describes the data set: data.yaml, or whatever it is called, or obj.data.

    Raises:
        UserError: it can't be read, or there are several.
    """
    file = _description_file(root)
    if file is None:
        return Description()
    content = _darknet(file) if file.suffix == ".data" else read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} must name the splits and the classes (train, val, names).")
    places = {split: _places(file, split, content.get(split)) for split in (*TRAIN, *VAL)}
    names, listed = content.get("names"), None
    if isinstance(names, str) and file.suffix == ".data":
        listed = resolve(names, [root])
        if listed is None:
            raise UserError(f"{file} names {names}, which is not there: restore it.")
        names = read_numbered_names(listed)
    names = [] if _is_empty(names) else _named(file, names)
    count = content.get("nc", content.get("classes"))
    if names and isinstance(count, str) and count.strip().isdecimal() and int(count) != len(names):
        raise UserError(
            f"{file} says that there are {count} classes, but names {len(names)}: correct one."
        )
    base = content.get("path")
    return Description(
        file=file,
        base=base if isinstance(base, str) and not _is_empty(base) else "",
        places=places,
        names=_unique(file, names),
        listed=listed,
        keypoints=_keypoints(file, content.get("kpt_shape")),
    )


def _description_file(root: Path) -> Path | None:
    if usual := named(root, DESCRIPTIONS):
        return usual
    files = [path for path in entries(root) if path.suffix.lower() in (".yaml", ".yml", ".data")]
    if len(files) > 1:
        # Beside it, a training's options are a common file; they name no classes.
        files = [file for file in files if file.suffix == ".data" or _names_classes(file)]
    if len(files) > 1:
        raise UserError(
            f"{root} holds several descriptions of the data, {files[0].name} and {files[1].name}: "
            "keep one, or call one data.yaml."
        )
    return files[0] if files else None


def _names_classes(file: Path) -> bool:
    content = read_yaml(file)
    return isinstance(content, dict) and "names" in content


def _darknet(file: Path) -> dict[str, str]:
    """The lines ``key = value`` of Darknet's description."""
    lines = [line.partition("#")[0].partition("=") for line in read_text(file).splitlines()]
    return {key.strip(): value.strip() for key, equals, value in lines if equals}


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.strip().lower() in EMPTY)


def _places(file: Path, split: str, places: Any) -> list[str]:
    if _is_empty(places):
        return []
    listed = [places] if isinstance(places, str) else places
    if not (isinstance(listed, list) and all(isinstance(place, str) for place in listed)):
        raise UserError(f"{file} has {split}: {_shown(places)}, which must be a path or several.")
    return listed


def _shown(value: Any) -> str:
    if isinstance(value, list) and value:
        return f"[{_shown(value[0])}{', …' if len(value) > 1 else ''}]"
    return value if isinstance(value, str) else f"a {type(value).__name__}"


def _keypoints(file: Path, shape: Any) -> int:
    if _is_empty(shape):
        return 0
    try:
        count, numbers = map(whole, shape)
    except (TypeError, ValueError):
        count = numbers = 0
    if count < 1 or numbers not in (2, 3):
        raise UserError(
            f"kpt_shape in {file} must be the number of keypoints, and 2 or 3 numbers for each."
        )
    return count * numbers


def _named(file: Path, names: Any) -> list[str]:
    """The class names of data.yaml: a list, or an entry per number."""
    if isinstance(names, dict):
        try:
            numbered = {whole(number): name for number, name in names.items()}
        except (TypeError, ValueError):
            numbered = {}
        if numbered and 0 <= min(numbered) <= max(numbered) < MOST_NAMES:
            names = [numbered.get(n, f"class {n}") for n in range(max(numbered) + 1)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"The names in {file} must be a list, or an entry per number from 0.")
    return names


def _unique(file: Path, names: list[str]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file} gives two classes the name {twice}: rename one.")
    return names


def class_names(root: Path, description: Description) -> list[str]:
    """The names that the description gives, or a file of names; none where there is neither.

    Raises:
        UserError: two classes have one name.
    """
    if description.names:
        return description.names
    file = next((f for name in NAME_FILES if (f := root / name).is_file()), None)
    return _unique(file, read_numbered_names(file)) if file else []


def reaches_outside(root: Path) -> bool:
    """Whether the description names lists, folders or a file of names that aren't below ``root``.

    Raises:
        UserError: see ``read_description``.
    """
    description = read_description(root)
    places = [place for split in description.places.values() for place in split]
    named = [description.listed, *(_resolve(root, description, place) for place in places)]
    root = root.resolve()
    return any(path and not path.resolve().is_relative_to(root) for path in named)


def _resolve(root: Path, description: Description, place: str) -> Path | None:
    return resolve(place, (root / description.base, root))


def find_images(
    root: Path, description: Description, split_names: Sequence[str], *, faults: Faults
) -> Place | None:
    """A split's images: from data.yaml, or a list of names, or from folders.

    Raises:
        UserError: a place that data.yaml names is not there, or one holds no images.
    """
    described = next((name for name in split_names if description.places.get(name)), None)
    if described:
        places = description.places[described]
        found = [(place, _resolve(root, description, place)) for place in places]
        gone = next((place for place, path in found if path is None), None)
        if gone is not None:
            raise UserError(
                f"{description.file} names {gone}, which is not there: restore it, or correct the "
                "path."
            )
        return _images(root, described, [path for _, path in found], faults)
    for place in _usual(root, split_names):
        name = next(n for n in split_names if n in (place.stem.lower(), place.parent.name.lower()))
        return _images(root, name, [place], faults)
    return None


def _usual(root: Path, split_names: Sequence[str]) -> list[Path]:
    """The folders or lists of a split that there are, in the order in which they are looked for."""
    own = split_folder(root, split_names)
    found = (
        split_folder(root / "images", split_names),
        own and named(own, ["images"]),
        named(root, split_names, ".txt"),
        own,
    )
    return [place for place in found if place]


def find_all(root: Path, faults: Faults) -> Place | None:
    """All images of the data folder, from its list or from its folders."""
    place = named(root, ["train.txt"]) or named(root, ["images"]) or root
    found = _images_of(root, place, faults)
    return Place("", *found) if found.files else None


def _images(root: Path, split: str, places: Sequence[Path], faults: Faults) -> Place:
    all_found = [_images_of(root, place, faults) for place in places]
    images = [image for found in all_found for image in found.files]
    if not images:
        where = ", ".join(map(str, places))
        raise UserError(
            f"There are no images of the split {split} in {where}: it must hold {EXPECTED}."
        )
    return Place(split, images, [path for found in all_found for path in found.left_out])


def _images_of(root: Path, place: Path, faults: Faults) -> Found:
    """The images of a folder or list, and the files of a folder that are not of the format."""
    if place.is_dir():
        found = find_files(place, faults)
        return Found(found.files, [f for f in found.left_out if f.suffix.lower() not in OWN])
    lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    bases = (root, place.parent)
    images = []
    for line in lines:
        image = resolve(line, bases)
        if image is None:
            sentence = f"{place} lists {line}, which is not there: restore it, or remove the line."
            faults.add(place, sentence)
        else:
            images.append(image)
    return Found(images, [])


def label_file(root: Path, image: Path) -> Path:
    """The text file of an image: in the folder labels beside images, or next to the image.

    Only folders below the data folder count, where the image lies there: ``images`` may also be
    the name of a folder above.

    Returns:
        The one that is there, or else the one in the folder labels.
    """
    beside = image.with_suffix(".txt")
    base = root if image.is_relative_to(root) else Path(image.anchor)
    parts = list(beside.relative_to(base).parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position].lower() == "images":
            folder = "Labels" if parts[position] == "Images" else "labels"
            other = Path(base, *parts[:position], folder, *parts[position + 1 :])
            return other if other.is_file() or not beside.is_file() else beside
    return beside


def unused_labels_note(root: Path, used: Sequence[Path]) -> tuple[str, ...]:
    """A note on text files that lie beside the used ones and belong to no image."""
    folders = dict.fromkeys(file.parent for file in used if file.parent != root)
    known = set(used)
    unused = [
        path
        for folder in folders
        if folder.is_dir()
        for path in entries(folder)
        if path.suffix == ".txt" and path not in known and path.name != "classes.txt"
    ]
    return unused_note(unused, "text file")
