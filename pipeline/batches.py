"""Batches for a pipeline, whose first stage takes images and whose last stage takes labels.

Every process knows from (seed, step) which samples a step takes, so labels need not travel through
the pipeline; they are read without decoding their images.
"""

from collections.abc import Callable, Iterator
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from data.decode import SampleError
from data.stream import RankBatches, RankShard, SampleKey, SampleStream
from engine.loaders import Loading, make_loader, started
from pipeline.schedule import Place

Batch = tuple[Tensor | None, Tensor | None]


class PipelineKeys(Sampler[list[SampleKey]]):
    """One pipeline's batches of the stream of samples.

    A step's samples are consecutive entries of the stream. They are first split into micro-batches
    and each micro-batch is then split over the pipelines. So the pipelines together have the same
    micro-batches as one pipeline alone, and with synchronised statistics the same training.

    Args:
        stream: the stream of samples.
        place: of this process.
        batch_size: samples of a step, over all pipelines.
        microbatches: parts of a pipeline's batch.
        start: steps already done.
        stop: the last step.
    """

    def __init__(
        self,
        stream: SampleStream,
        place: Place,
        batch_size: int,
        microbatches: int,
        start: int,
        stop: int,
    ) -> None:
        self.microbatches, self.size = microbatches, batch_size // place.replicas
        part = self.size // microbatches
        ends = start * batch_size, stop * batch_size
        self.parts = RankBatches(stream, part, place.replica, place.replicas, *ends)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        parts = iter(self.parts)
        while keys := [key for part in islice(parts, self.microbatches) for key in part]:
            yield keys

    def __len__(self) -> int:
        return len(self.parts) // self.microbatches


class PipelineBatches:
    """Batches of (images, labels), either of them None where the process doesn't take it.

    The workers that load images start with the object, on the first stage only.

    Args:
        train: training samples of one size, by ``SampleKey``.
        train_labels: int64 (N,), their classes.
        keys: of this pipeline's training batches.
        val: the validation samples.
        val_labels: int64 (M,), their classes.
        place: of this process.
        loading: how images are loaded.
        image_size: their height and width.
    """

    def __init__(
        self,
        train: Dataset,
        train_labels: Tensor,
        keys: PipelineKeys,
        val: Dataset,
        val_labels: Tensor,
        place: Place,
        loading: Loading,
        image_size: tuple[int, int],
    ) -> None:
        self.train_labels, self.val_labels = train_labels, val_labels
        self.keys, self.has_labels = keys, place.is_last
        self.shard = RankShard(len(val_labels), place.replica, place.replicas)
        self._train_images = self._val_loader = None
        self.image_size = tuple(image_size)
        if place.is_first:
            self._train_images = iter(make_loader(train, _stack, loading, batch_sampler=keys))
            batches = {"sampler": self.shard, "batch_size": keys.size}
            self._val_loader = started(make_loader(val, _stack, loading, **batches))

    def train(self) -> Iterator[Batch]:
        """The training batches: uint8 (B, 3, H, W) and int64 (B,)."""
        for keys, images in zip(self.keys, self._train_images or repeat(None), strict=False):
            labels = self.train_labels[[key.index for key in keys]]
            yield images, labels if self.has_labels else None

    def validation(self, failed: Callable[[SampleError], None]) -> Iterator[Batch]:
        """This pipeline's share of the validation data; every sample is in one pipeline's share.

        A pipeline takes batches of one size only, so the last one is filled up with black images.
        They have no labels: the last batch has fewer labels than images. The stages need each other
        for every batch, so a batch that can't be read is black too.

        Args:
            failed: gets the error of such a batch.
        """
        loaded = iter(self._val_loader) if self._val_loader else None
        mine, size = list(self.shard.indices), self.keys.size
        for first in range(0, len(mine), size):
            images = None
            if loaded:
                try:
                    images = next(loaded)
                except SampleError as error:
                    failed(error)
                    images = torch.zeros(0, 3, *self.image_size, dtype=torch.uint8)
                images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))
            labels = self.val_labels[mine[first : first + size]]
            yield images, labels if self.has_labels else None

    @property
    def loaders(self) -> tuple[Iterator | DataLoader | None, ...]:
        """The loaders, whose workers the caller stops."""
        return self._train_images, self._val_loader


def _stack(samples: list[dict[str, Any]]) -> Tensor:
    return torch.stack([sample["image"] for sample in samples])
