"""The loop of predict.py: load in workers, compute in batches, write in threads."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import av
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from tqdm import tqdm

from data.on_disk import on_disk_if_large
from engine.loaders import Loading, count_workers, make_loader, stop_workers
from errors import UserError
from inference.films import predict_film, predict_slid
from inference.options import PredictOptions
from inference.output import OutputFolder
from inference.sources import Source
from inference.trained import Trained

WRITERS = 2  # threads
WAITING = 64  # results that wait to be written at most
WAITING_BYTES = 2**28  # of their pictures and masks; a larger one is written before the next
TOO_LARGE = "it needs more memory than the device has; use --tile, --batch_size 1, or --cpu"


def predict_all(
    accelerator: Accelerator,
    model: Trained,
    source: Source,
    folder: OutputFolder,
    options: PredictOptions,
) -> None:
    """Predict on this process's share of the inputs that are still to do.

    Whole batches are shared out, so that a result doesn't depend on the number of processes.

    Raises:
        UserError: the output can't be written.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    slides = bool(options.every) and model.inference.media == "video"
    pictures_only = model.inference.media == "image"
    films = [n for n in folder.todo if slides or (pictures_only and _is_film(source, n))]
    singles = [n for n in folder.todo if n not in set(films)]
    # In tiles a picture is a batch by itself, and no other waits in memory for its turn.
    size = 1 if model.inference.tiles else options.batch_size
    batches = [singles[first : first + size] for first in range(0, len(singles), size)][rank::world]
    films = films[rank::world]
    total = sum(map(len, batches)) + len(films)
    show = accelerator.is_main_process
    with Writers(folder) as writers, tqdm(total=total, unit="input", disable=not show) as bar:
        for number, media, result, truth in _results(model, source, folder, batches, options):
            if isinstance(result, str):
                folder.failed(number, result)
            else:
                writers.submit(number, media, result, truth)
            bar.update()
        for number in films:
            try:
                if slides:
                    with source.open(number) as (video, truth):
                        found = predict_slid(model, video, options.every, size)
                else:
                    found = predict_film(model, folder.task, source.inputs[number], options)
            except (UserError, av.FFmpegError, RuntimeError, ValueError) as error:
                found = _reason(error)
            if isinstance(found, str):
                folder.failed(number, found)
            elif slides:
                writers.submit(number, None, found, truth)
            else:
                folder.add(source.inputs[number], found)
            bar.update()


def _is_film(source: Source, number: int) -> bool:
    return source.inputs[number].kind != "image"


def _results(
    model: Trained,
    source: Source,
    folder: OutputFolder,
    batches: list[list[int]],
    options: PredictOptions,
) -> Iterator[tuple[int, Any, Any, Any]]:
    """(number, media or None, result or why it failed, truth) of every input of the batches."""
    if not batches:
        return
    on_gpu = model.inference.device.type == "cuda"
    workers = count_workers(options.num_workers, sum(map(len, batches)))
    workers = 0 if model.inference.tiles else workers
    items = Items(model, source, folder.task.needs_media)
    loader = make_loader(items, items.collate, Loading(workers, on_gpu), batch_sampler=batches)
    try:
        for failed, groups in loader:
            for number, reason in failed:
                yield number, None, reason, None
            for pixels, samples in groups:
                found = _compute(model, pixels, samples)
                for sample, result in zip(samples, found, strict=True):
                    yield sample["number"], sample["media"], result, sample["truth"]
    finally:
        stop_workers(loader)


def _compute(model: Trained, pixels: torch.Tensor, samples: list[dict[str, Any]]) -> list[Any]:
    """Results of a batch, or where it is too large or unfit of each sample, or why it failed."""
    try:
        return model.of_batch(pixels, samples)
    except (RuntimeError, ValueError) as error:
        reason = _reason(error, f" of {tuple(pixels[0].shape)}")
    # Outside of the handler, which would keep the batch's memory.
    if len(samples) == 1:
        return [reason]
    parts = zip(pixels.split(1), samples, strict=True)
    return [_compute(model, part, [sample])[0] for part, sample in parts]


def _reason(error: Exception, shape: str = "") -> str:
    """Why an input failed, of what it raised; frees memory where there was too little."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return TOO_LARGE
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, av.FFmpegError):
        return f"it can't be decoded, or its annotated video not be written ({text})"
    return f"the network can't take an input{shape} ({text})"


class Items(Dataset):
    """Inputs as the network sees them; bad ones as the reason.

    Args:
        model: what prepares an input.
        source: what opens it.
        with_media: whether the picture itself is needed too, or of a video the middle clip.
    """

    def __init__(self, model: Trained, source: Source, with_media: bool) -> None:
        self.model, self.source, self.with_media = model, source, with_media

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The prepared input of a number, or {"number", "error"}."""
        try:
            with self.source.open(number) as (media, truth):
                inference = self.model.inference
                if inference.tiles_as_stored and isinstance(media, torch.Tensor):
                    media = on_disk_if_large(media)
                sample = inference.prepare(media)
        except UserError as error:
            return {"number": number, "error": str(error)}
        kept = None
        if self.with_media:
            views = sample.get("video")
            kept = media if views is None else views[len(views) // 2]
        return sample | {"number": number, "media": kept, "truth": truth}

    def collate(self, samples: list[dict[str, Any]]) -> tuple[list, list]:
        """The failed ones (number, reason), and groups of one shape (stacked pixels, samples)."""
        failed = [(each["number"], each["error"]) for each in samples if "error" in each]
        groups: dict[Any, list[dict[str, Any]]] = {}
        for each in samples:
            if "error" not in each:
                groups.setdefault(self.model.shape_of(each), []).append(each)
        name = self.model.inference.media
        return failed, [
            (_stacked([each.pop(name) for each in group]), group) for group in groups.values()
        ]


def _stacked(pixels: list[Any]) -> Any:
    """Of one picture a view, since it may be large; one on the disk stays there."""
    if not isinstance(pixels[0], torch.Tensor):
        return pixels
    return pixels[0][None] if len(pixels) == 1 else torch.stack(pixels)


class Writers:
    """Threads that write results beside the network's work, not too many behind it.

    Args:
        folder: what writes.
    """

    def __init__(self, folder: OutputFolder) -> None:
        self.folder, self.pending = folder, deque[tuple[Future, int]]()
        self.bytes = 0  # of what is pending
        self.threads = ThreadPoolExecutor(WRITERS)

    def __enter__(self) -> "Writers":
        return self

    def submit(self, number: int, media: Any, result: Any, truth: Any) -> None:
        """Write a result soon, and before returning where much waits; see OutputFolder.succeeded.

        Raises:
            UserError: one before could not be written.
        """
        held = (media, getattr(result, "mask", None), truth)
        size = sum(math.prod(each.shape) for each in held if hasattr(each, "shape"))
        done = self.threads.submit(self.folder.succeeded, number, media, result, truth)
        self.pending.append((done, size))
        self.bytes += size
        while len(self.pending) > WAITING or self.bytes > WAITING_BYTES:
            self._finish_first()

    def _finish_first(self) -> None:
        done, size = self.pending.popleft()
        self.bytes -= size
        try:
            done.result()
        except OSError as error:
            where = error.filename or self.folder.path
            raise UserError(
                f"{where} could not be written ({error.strerror}); make room, and run again with "
                "--skip_done."
            ) from None

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            while self.pending and kind is None:
                self._finish_first()
        finally:
            self.threads.shutdown(cancel_futures=True)
