"""Which mask belongs to which image, and where both lie."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.faults import Faults
from data.folders import IMAGE_SUFFIXES, find_files, left_out_note, named, stem_below
from errors import UserError

# The usual names of folders, in the order in which they are looked for.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "sat", "images_prepped")
MASK_FOLDERS = ("masks", "mask", "annotations", "annotation", "annot", "labels", "label", "gt")
MASK_FOLDERS += ("annotations_prepped",)
ARRANGEMENTS = (
    "{split}/{kind}",
    "{kind}/{split}",
    "{split}_{kind}",
    "{split}{kind}",
    "{kind}_{split}",
)

# What usually ends the names of images and of masks, without which they are the same.
IMAGE_TAILS = ("", "_sat", "_image", "_img", "-image")
MASK_TAILS = ("", "_mask", "_masks", "_label", "_labels", "_l", "_seg", "_gt", "-mask", "-label")
# Beside images, a file is a mask only with an end that no image has.
CLEAR_TAILS = tuple(tail for tail in MASK_TAILS if len(tail) > 2)

Pairs = list[tuple[Path, Path]]  # image and mask


class Place(NamedTuple):
    """Where a split lies; one folder for both if the masks have names like ``x_mask``."""

    split: str
    images: Path
    masks: Path


def find_place(root: Path, split_names: Sequence[str]) -> Place | None:
    """Where a split lies, in any of the usual arrangements and any case; None where it doesn't.

    Args:
        root: of the data set.
        split_names: TRAIN or VAL; ("",) for folders that lie right in ``root``.

    Raises:
        UserError: two folders have the same name but for case.
    """
    for split in split_names:
        for arrangement in ARRANGEMENTS:
            images = _folder(root, arrangement, split, (*IMAGE_FOLDERS, ""))
            masks = _folder(root, arrangement, split, MASK_FOLDERS)
            if images and masks:
                return Place(split, images, masks)
    for split in split_names:
        folder = named(root, [split]) if split else root
        if folder and folder.is_dir() and _holds_masks(folder):
            return Place(split, folder, folder)
    return None


def _holds_masks(folder: Path) -> bool:
    """Whether files of a folder have names like those of masks."""
    files = find_files(folder, Faults()).files
    return any(_stem(folder, path).endswith(CLEAR_TAILS) for path in files)


def _folder(root: Path, arrangement: str, split: str, kinds: Sequence[str]) -> Path | None:
    for kind in kinds:
        place: Path | None = root
        for name in arrangement.format(split=split, kind=kind).strip("/_").split("/"):
            place = place and named(place, [name])
        if place and place.is_dir():
            return place
    return None


def match_pairs(
    images: Path,
    masks: Path,
    faults: Faults,
    image_tails: Sequence[str] = IMAGE_TAILS,
    mask_tails: Sequence[str] = MASK_TAILS,
    skip_unlabelled: bool | None = None,
) -> tuple[Pairs, tuple[str, ...]]:
    """Match every image with the mask of the same relative path and stem, in any case.

    Args:
        images: folder, searched with its subfolders (but not in ``masks``, if that is one).
        masks: folder, searched with its subfolders; masks without an image are left out. If it is
            ``images``, a mask is a file whose name ends with one of CLEAR_TAILS.
        faults: gets the images without a mask or with several.
        image_tails: ends of the image's stem that the mask's lacks, in order of preference;
            without "", images that end otherwise are left out.
        mask_tails: ends that the mask's stem may have, in order of preference.
        skip_unlabelled: leave out images without a mask, instead of refusing them; None where
            users aren't asked.

    Returns:
        The pairs, and notes on what is left out.

    Raises:
        UserError: there are no images.
    """
    found = find_files(images, faults)
    if masks == images:
        mask_tails = CLEAR_TAILS
        mask_files = [path for path in found.files if _stem(images, path).endswith(mask_tails)]
        image_files = sorted(set(found.files) - set(mask_files))
        left_out = [path for path in found.left_out if path.suffix.lower() not in (".csv", ".txt")]
    else:
        inside = os.fspath(masks) + os.sep
        image_files = [path for path in found.files if not os.fspath(path).startswith(inside)]
        left_out = [path for path in found.left_out if not os.fspath(path).startswith(inside)]
        mask_files = find_files(masks, faults).files
    notes = left_out_note(images, left_out, "images")
    masks_of: dict[str, list[Path]] = defaultdict(list)
    for mask in mask_files:
        masks_of[_stem(masks, mask)].append(mask)
    pairs: Pairs = []
    unlabelled: list[Path] = []
    for image in image_files:
        stem = _stem(images, image)
        tail = next((t for t in image_tails if t and stem.endswith(t)), "")
        if not tail and "" not in image_tails:
            continue
        keys = [start + e for start in (stem, stem.removesuffix(tail)) for e in mask_tails]
        candidates = next((masks_of[key] for key in keys if key in masks_of), [])
        candidates = _same_case(images, image, masks, candidates)
        if len(candidates) == 1:
            pairs.append((image, candidates[0]))
        elif candidates:
            both = " and ".join(str(path) for path in candidates[:2])
            faults.add(image, f"Image {image} has several masks, {both}: remove all but one.")
        elif skip_unlabelled:
            unlabelled.append(image)
        else:
            wanted = masks / (stem_below(images, image).removesuffix(tail) + mask_tails[0])
            remedy = f"add {wanted}.png or remove the image"
            if skip_unlabelled is not None:
                remedy += ", or leave such images out with --skip_unlabelled"
            faults.add(image, f"Image {image} has no mask: {remedy}.")
    _refuse_shared(pairs, faults)
    without = sorted(set(mask_files) - {mask for _, mask in pairs})
    if without and not faults.found:
        notes += (f"{len(without)} masks without an image are left out, {without[0]} first.",)
    if unlabelled:
        notes += (f"{len(unlabelled)} images without a mask are left out, {unlabelled[0]} first.",)
    if not pairs and not faults.found:
        raise UserError(f"There are no images in {images}: put them there.")
    return pairs, notes


def _stem(folder: Path, path: Path) -> str:
    """Path below a folder in lower case, without suffixes: ``a/x`` for ``a/X.jpg.png``."""
    stem = path.relative_to(folder).as_posix().lower()
    while os.path.splitext(stem)[1] in IMAGE_SUFFIXES:
        stem = os.path.splitext(stem)[0]
    return stem


def _same_case(images: Path, image: Path, masks: Path, candidates: list[Path]) -> list[Path]:
    """Of several masks, those whose names begin as the image's does, in the same case."""
    if len(candidates) < 2:
        return candidates
    stem = stem_below(images, image)
    exact = [m for m in candidates if m.relative_to(masks).as_posix().startswith(stem)]
    return exact or candidates


def _refuse_shared(pairs: Pairs, faults: Faults) -> None:
    """Images that share a mask: of most such pairs, one is not what it seems."""
    first: dict[Path, Path] = {}
    for image, mask in pairs:
        other = first.setdefault(mask, image)
        if other is not image:
            faults.add(
                image, f"Images {other} and {image} have the same mask, {mask}: remove one of them."
            )


def pair_names(root: Path, pairs: Pairs) -> list[str]:
    """What each pair is called: its image's path below the data set."""
    return [os.path.relpath(image, root).replace(os.sep, "/") for image, _ in pairs]
