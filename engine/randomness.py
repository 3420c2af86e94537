"""What is random in a training step: dropout, and the proposals of two-stage detectors."""

import torch

from data.stream import sample_seed


def seed_step(seed: int, step: int, rank: int) -> None:
    """Put torch's generators of every device into the state of (seed, step, rank).

    A resumed run then draws what the uninterrupted one would have drawn.
    """
    torch.manual_seed(sample_seed(seed, step, rank))
