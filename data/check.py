"""``--check_data``: reading a whole data set before training, whatever its task.

One pass lists every fault of every file, what is left out or looks wrong, and what the data consist
of. What looks wrong is no fault: the exit status is 1 for faults alone.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.faults import Fault, Faults
from data.notes import some_of
from data.paths import stored_paths
from data.samples import RowReader
from errors import UserError

DARK = 16  # a picture whose brightest value is below this is as good as black


class Look(NamedTuple):
    """What any sample shows, whatever its task.

    Attributes:
        digest: of the decoded pixels: equal for equal pictures, whatever their files.
        constant: whether all pixels are the same.
        dark: whether no value reaches DARK.
    """

    digest: bytes
    constant: bool
    dark: bool

    @classmethod
    def of(cls, images: Iterable[torch.Tensor]) -> "Look":
        """Look at an image uint8 (3, H, W), or at the frames of a video one after the other."""
        digest, brightest, first, constant = hashlib.blake2b(digest_size=16), 0, None, True
        for image in images:
            first = image[:, :1, :1] if first is None else first
            constant = constant and bool((image == first).all())
            brightest = max(brightest, int(image.max()))
            digest.update(str(tuple(image.shape)).encode())
            digest.update(np.ascontiguousarray(image.numpy()).data)
        return cls(digest.digest(), constant, brightest < DARK)


class Suspicion(NamedTuple):
    """What looks wrong, and may be right.

    Attributes:
        kind: what is seen, such as "constant pictures".
        hint: what it may mean.
        seen: where, mostly the samples' names; it is counted.
    """

    kind: str
    hint: str
    seen: list[str]


class Survey(Protocol):
    """What reading every sample of a split has shown.

    Attributes:
        faults: of the samples that can't be used.
        looks: of each sample, None for one that can't be used.
        samples: number of samples read, the bad ones included.
    """

    faults: list[Fault]
    looks: list[Look | None]
    samples: int

    def lines(self, classes: Sequence[str]) -> list[str]:
        """What the good samples consist of, in lines to print."""

    def suspicions(self, classes: Sequence[str], reader: Any) -> list[Suspicion]:
        """What looks wrong in this split."""


def run_check(
    options: Any,
    load: Callable[[Any, Faults], Any],
    readers: Callable[[Any], Mapping[str, RowReader]],
    survey: Callable[[Any, Any, int], Survey],
    workers: Callable[[int], int],
) -> int:
    """Read a data set completely, print what is found, and write it where the options say.

    Args:
        options: ``check_data`` may be the path of a JSON file to write.
        load: finds the data set and gives its faults to the second argument.
        readers: of a data set, a reader per split, by the split's name.
        survey: reads a split: the data set, its reader, and a number of workers.
        workers: loader workers for a number of samples.

    Returns:
        The exit status: 1 if anything is at fault.

    Raises:
        UserError: the JSON file can't be written.
    """
    file = Path(options.check_data) if isinstance(options.check_data, str) else None
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UserError(
            f"--check_data {file} can't be written: give a file in a folder that exists."
        )
    faults = Faults()
    report: dict[str, Any] = {"dataset": options.dataset, "data_dir": options.data_dir}
    found: list[tuple[str, Fault]] = []
    suspicions: list[tuple[str, Suspicion]] = []
    try:
        data = load(options, faults)
    except UserError as error:
        faults.add(options.data_dir or options.dataset, str(error))
        data = None
    found += [("", fault) for fault in faults.found]
    if data is not None:
        report |= {"notes": list(data.notes), "classes": list(data.classes), "splits": {}}
        for note in data.notes:
            print(note)
        surveys: dict[str, tuple[RowReader, Survey]] = {}
        for split, reader in readers(data).items():
            seen = survey(data, reader, workers(len(reader)))
            surveys[split] = reader, seen
            print(f"{split}: {seen.samples} samples, {len(seen.faults)} bad")
            print("\n".join(seen.lines(data.classes)))
            report["splits"][split] = {"samples": seen.samples, "bad": len(seen.faults)}
            found += [(split, fault) for fault in seen.faults]
            own = [*_plain_pictures(reader, seen), *seen.suspicions(data.classes, reader)]
            suspicions += [(split, suspicion) for suspicion in own]
        suspicions += [("", suspicion) for suspicion in _between_splits(surveys)]
    for line in (*_fault_lines(found), *_suspicion_lines(suspicions)):
        print(line)
    report["faults"] = [
        {"split": split, **fault._asdict(), "kind": fault.kind} for split, fault in found
    ]
    report["suspicious"] = [{"split": split, **each._asdict()} for split, each in suspicions]
    if file is not None:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
        print(f"The report is in {file}.")
    return 1 if found else 0


def read_all(
    read: Callable[[int], Any], reader: RowReader, num_workers: int
) -> Iterator[tuple[Any, Fault | None]]:
    """Read every sample in loader workers, with a progress bar, and go on after a bad one.

    Args:
        read: reads the sample of an index and returns what is to be counted; small, because it
            travels from the worker to this process.
        reader: of the split; names the samples.
        num_workers: loader workers.

    Yields:
        For each sample in order: what ``read`` returned, and None; or None, and its fault.
    """
    samples = _Samples(read, reader)
    loader = DataLoader(samples, batch_size=4, num_workers=num_workers, collate_fn=list)
    with tqdm(total=len(reader), unit="sample", desc="read", leave=False, mininterval=1) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


class _Samples(Dataset):
    def __init__(self, read: Callable[[int], Any], reader: RowReader) -> None:
        self.read, self.reader = read, reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, Fault | None]:
        try:
            return self.read(index), None
        except UserError as error:
            return None, Fault(self.reader.name(index), "", str(error))
        except Exception as error:  # whatever a decoder raises: the other samples are read too
            name = self.reader.name(index)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return None, Fault(name, "", f"{name} can't be read ({reason}): replace or remove it.")


def _plain_pictures(reader: RowReader, seen: Survey) -> Iterator[Suspicion]:
    """Pictures without anything to see, and those that occur twice."""
    looks = [(number, look) for number, look in enumerate(seen.looks) if look]
    first: dict[bytes, int] = {}
    kinds = {
        ("constant pictures", "one colour alone: empty, or saved in another range of values?"): [
            number for number, look in looks if look.constant
        ],
        ("dark pictures", f"no value of {DARK} or more out of 255: 10 or 12 bits, stored in 16?"): [
            number for number, look in looks if look.dark and not look.constant
        ],
        ("duplicate pictures", "the same pixels as another picture of this split"): [
            number for number, look in looks if first.setdefault(look.digest, number) != number
        ],
    }
    for (kind, hint), numbers in kinds.items():
        if numbers:
            yield Suspicion(kind, hint, [reader.name(number) for number in numbers])


def _between_splits(surveys: Mapping[str, tuple[RowReader, Survey]]) -> Iterator[Suspicion]:
    """Pictures and names that occur in both splits."""
    (first, seen), (second, then) = surveys.values()
    known = {look.digest: number for number, look in enumerate(seen.looks) if look}
    pairs = [
        f"{second.name(number)} = {first.name(known[look.digest])}"
        for number, look in enumerate(then.looks)
        if look and look.digest in known
    ]
    if pairs:
        yield Suspicion("pictures in both splits", "the scores will be too good", pairs)
    if shared := _inner_names(first) & _inner_names(second):
        yield Suspicion("names in both splits", "one split made twice?", sorted(shared))


def _inner_names(reader: RowReader) -> set[str]:
    """The paths of a split's files below the folder that they share."""
    paths = [path for path in stored_paths(reader.rows, reader.media) or () if path]
    if not paths or not os.path.exists(paths[0]):  # names of what is in memory
        return set()
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {os.path.relpath(path, common) for path in paths}


def _fault_lines(found: Sequence[tuple[str, Fault]]) -> list[str]:
    """Every fault; those of one kind under a heading that counts them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for _, fault in found:
        where = f"{fault.place}: " if fault.place and fault.place not in fault.sentence else ""
        kinds[fault.kind].append(where + fault.sentence)
    lines = [f"faults: {len(found)} of {len(kinds)} kinds"] if found else []
    for kind, sentences in sorted(kinds.items(), key=lambda item: -len(item[1])):
        if len(sentences) > 1:
            lines.append(f"  {len(sentences)} times: {kind}")
        lines += [f"    {sentence}" for sentence in sentences]
    return lines


def _suspicion_lines(suspicions: Sequence[tuple[str, Suspicion]]) -> list[str]:
    lines = ["look at these:"] if suspicions else []
    for split, (kind, hint, seen) in suspicions:
        lines.append(
            f"  {split + ': ' if split else ''}{len(seen)} {kind}, {hint} ({some_of(seen)})"
        )
    return lines
