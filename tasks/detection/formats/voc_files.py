"""Where the images and the XML files of VOC's layout, and of others like it, lie."""

from collections.abc import Container, Sequence
from pathlib import Path

from data.faults import Faults
from data.folders import (
    IMAGE_SUFFIXES,
    Found,
    entries,
    find_files,
    named,
    split_folder,
    stem_below,
)
from data.textfiles import read_text
from errors import UserError
from tasks.detection.formats.splits import Place, unused_note

EXPECTED = "JPEGImages, Annotations and ImageSets/Main, or an XML file beside each image"
IMAGES = ("jpegimages", "images", "image", "imgs", "img")
ANNOTATIONS = ("annotations", "annotation", "annots", "annot", "xmls", "xml", "labels", "label")

Pair = tuple[Path, Path]  # an image, and its XML file whether that is there or not


def find_pairs(root: Path, split_names: Sequence[str], faults: Faults) -> Place | None:
    """The images of a split and their XML files, from a list of names or from folders.

    Folders are ``train`` with both kinds of files, or with a folder for each, or ``images/train``
    and ``annotations/train``; of the usual names, in any case.
    """
    images, annotations = named(root, IMAGES), named(root, ANNOTATIONS)
    sets = named(root, ["imagesets"])
    lists = sets and named(sets, ["main"])
    file = lists and named(lists, split_names, ".txt")
    if images and annotations and file:
        found = find_files(images, faults)
        return Place(
            file.stem.lower(),
            _listed(file, images, annotations, found.files, faults),
            _other(found),
        )
    for parent in filter(None, (root, images)):
        if folder := split_folder(parent, split_names):
            others = annotations and split_folder(annotations, split_names)
            place = _pairs(folder, others if parent == images else None, faults)
            if place.found:
                return place._replace(name=folder.name.lower())
    return None


def find_all(root: Path, faults: Faults) -> Place | None:
    """All images of the data folder and their XML files."""
    place = _pairs(root, None, faults)
    return place if place.found else None


def _other(found: Found) -> list[Path]:
    return [path for path in found.left_out if path.suffix.lower() != ".xml"]


def _pairs(folder: Path, annotations: Path | None, faults: Faults) -> Place:
    """Every image below a folder, if there are XML files for some.

    They lie in ``annotations``, in a folder of a usual name beside the images' own folder, or
    next to the images.
    """
    images = named(folder, IMAGES)
    images = images if images and images.is_dir() else folder
    places = [annotations, named(folder, ANNOTATIONS)]
    places = [place for place in places if place and place.is_dir()] + [images]
    found = find_files(images, faults)
    for place in places:
        pairs = [(image, _xml(place, stem_below(images, image))) for image in found.files]
        if any(file.is_file() for _, file in pairs):
            return Place("", pairs, _other(found))
    return Place("", [])


def _xml(folder: Path, stem: str) -> Path:
    """The XML file of an image, by its path below the images' folder; it may not be there."""
    return folder / f"{stem}.xml"


def _listed(
    file: Path, images: Path, annotations: Path, files: Sequence[Path], faults: Faults
) -> list[Pair]:
    known: dict[str, list[Path]] = {}
    for path in files:
        known.setdefault(stem_below(images, path), []).append(path)
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty: write the names of the split's images into it.")
    pairs = []
    for line in lines:
        name = _name(line, known)
        same = known.get(name, [])
        same = [path for path in same if path.name == Path(line.replace("\\", "/")).name] or same
        if len(same) == 1:
            pairs.append((same[0], _xml(annotations, name)))
        elif same:
            sentence = f"{file} lists {name}, which may be {same[0]} or {same[1]}: remove one."
            faults.add(file, sentence)
        else:
            sentence = f"{images} has no image {name} although {file} lists it: add it."
            faults.add(file, sentence)
    return pairs


def _name(line: str, known: Container[str]) -> str:
    """The image that a line names; lists may have suffixes, or a mark per image (-1, 0 or 1)."""
    line = line if line in known else line.replace("\\", "/")
    plain = line[: -len(Path(line).suffix)] if Path(line).suffix.lower() in IMAGE_SUFFIXES else line
    listed, _, shown = line.rpartition(" ")
    candidates = [line, plain, *([listed.strip()] if shown in ("-1", "0", "1") else [])]
    return next((name for name in candidates if name in known), line)


def unused_xml_note(pairs: Sequence[tuple[Path, Path | None]]) -> tuple[str, ...]:
    """A note on XML files beside the used ones that belong to no image of any split.

    VOC's own folders hold more than the lists name, so only folders without lists are looked at.
    """
    used = {file for _, file in pairs if file}
    folders = [folder for folder in {file.parent for file in used}]
    unused = [
        path
        for folder in sorted(folders)
        if not (folder.parent / "ImageSets").is_dir()
        for path in entries(folder)
        if path.suffix.lower() == ".xml" and path not in used
    ]
    return unused_note(unused, "XML file")
