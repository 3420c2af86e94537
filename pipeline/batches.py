"""Batches for a pipeline, whose first stage takes pictures and whose last stage takes labels.

Every process knows from (seed, step) which samples are meant, so labels need not travel through the
pipeline; they are read without decoding their pictures.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from data.stream import RankBatches, RankShard, SampleKey, SampleStream


class Share(NamedTuple):
    """Which part of every batch a process needs.

    Attributes:
        replica: the number of its pipeline.
        replicas: how many pipelines there are.
        batch_size: samples per batch of a pipeline.
        microbatches: parts of a batch that pass through the pipeline one after the other.
        pictures: whether it takes the pictures.
        labels: whether it takes the labels.
    """

    replica: int
    replicas: int
    batch_size: int
    microbatches: int
    pictures: bool
    labels: bool


class PipelineKeys(Sampler[list[SampleKey]]):
    """One pipeline's batches of the stream of samples.

    A step's samples are consecutive entries of the stream. They are first split into micro-batches
    and each micro-batch is then split over the pipelines. So the pipelines together have the same
    micro-batches as one pipeline alone, and with synchronised statistics the same training.

    Args:
        stream: the stream of samples.
        share: this process's part.
        steps: number of batches.
    """

    def __init__(self, stream: SampleStream, share: Share, steps: int) -> None:
        self.microbatches, self.steps = share.microbatches, steps
        self.parts = RankBatches(
            stream,
            share.batch_size // share.microbatches,
            share.replica,
            share.replicas,
            start=0,
            stop=steps * share.batch_size * share.replicas,
        )

    def __iter__(self) -> Iterator[list[SampleKey]]:
        parts = iter(self.parts)
        for _ in range(self.steps):
            yield [key for part in islice(parts, self.microbatches) for key in part]

    def __len__(self) -> int:
        return self.steps


Batch = tuple[Tensor | None, Tensor | None]


class PipelineBatches:
    """Batches of (pictures, labels), either of them None where the process doesn't take it.

    The pictures' workers start with the object.

    Args:
        train: training samples of one size, keys as in data/stream.py.
        train_labels: (N,) their classes.
        val: the validation samples.
        val_labels: their classes.
        share: this process's part.
        seed: of the order.
        steps: training batches in all.
        num_workers: of each of the two loaders.
        pin_memory: whether batches are loaded into memory that a GPU can read.
    """

    def __init__(
        self,
        train: Dataset,
        train_labels: Tensor,
        val: Dataset,
        val_labels: Tensor,
        share: Share,
        seed: int,
        steps: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.train_labels, self.val_labels, self.share = train_labels, val_labels, share
        self.train_keys = PipelineKeys(SampleStream(len(train_labels), seed), share, steps)
        self.val_keys = RankShard(len(val_labels), share.replica, share.replicas)
        if not share.pictures:
            return
        workers: dict[str, Any] = {"collate_fn": _stack, "num_workers": num_workers}
        workers |= {"pin_memory": pin_memory, "persistent_workers": num_workers > 0}
        # Forked even where Python by default no longer does (3.14), but not while training runs.
        workers["multiprocessing_context"] = "fork" if num_workers else None
        self._train_pictures = iter(DataLoader(train, batch_sampler=self.train_keys, **workers))
        size = {"sampler": self.val_keys, "batch_size": share.batch_size}
        self._val_loader = DataLoader(val, **size, **workers)
        if num_workers:
            iter(self._val_loader)

    def train(self) -> Iterator[Batch]:
        """The training batches: uint8 (B, 3, H, W) and int64 (B,)."""
        for keys in self.train_keys:
            labels = self.train_labels[[key.index for key in keys]]
            yield (
                next(self._train_pictures) if self.share.pictures else None,
                labels if self.share.labels else None,
            )

    def validation(self) -> Iterator[Batch]:
        """This pipeline's share of the validation data; every sample is in one pipeline's share.

        A pipeline takes batches of one size only, so the last one is filled up with black pictures.
        They have no labels: the last batch has fewer labels than pictures.
        """
        pictures = iter(self._val_loader) if self.share.pictures else None
        mine, size = list(self.val_keys.indices), self.share.batch_size
        for first in range(0, len(mine), size):
            labels, images = self.val_labels[mine[first : first + size]], None
            if pictures is not None:
                images = next(pictures)
                missing = size - len(images)
                images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
            yield images, labels if self.share.labels else None


def _stack(samples: list[dict[str, Any]]) -> Tensor:
    return torch.stack([sample["image"] for sample in samples])
