"""What is random in a training step, and how the same bits come out of it again."""

import contextlib
import os
import re
from collections.abc import Iterator

import numpy as np
import torch

from errors import UserError

# Numbers of SeedSequence's ``spawn_key``: steps draw from another key space than samples, whose key
# is empty, so that (seed, epoch, index) and (seed, step, rank) never give the same state.
STEPS = (1,)


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Put torch's generators of the CPU and of ``device`` into the state of (seed, step, rank).

    A resumed run then draws what the uninterrupted one would have drawn: dropout, and the proposals
    of two-stage detectors. ``torch.manual_seed`` would look for devices of every other kind too,
    which takes the time of a small layer.
    """
    sequence = np.random.SeedSequence([seed, step, rank], spawn_key=STEPS)
    state = int(sequence.generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        torch.cuda.manual_seed(state)


def set_deterministic(wanted: bool) -> None:
    """Whether torch may only use algorithms that give the same bits at every run.

    Call it before anything runs on a GPU: cuBLAS reads its setting once. On the CPU torch's
    algorithms are deterministic anyway.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, finds bugs only
        torch.backends.cudnn.deterministic = True  # in evaluation too: see counting_freely
    torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def naming_what_is_not_deterministic() -> Iterator[None]:
    """Turn torch's refusal of an operation into a UserError that names the operation."""
    try:
        yield
    except RuntimeError as error:
        # The pipeline's schedule wraps the error of a stage in its own.
        found = re.search(
            r"(\S+) does not have a deterministic implementation", f"{error} {error.__cause__}"
        )
        if not found:
            raise
        raise UserError(
            f"--deterministic: {found[1]} has no deterministic form on this device; choose another "
            "model or loss, or leave the option out."
        ) from None


@contextlib.contextmanager
def counting_freely() -> Iterator[None]:
    """Inside, operations without a deterministic form are allowed.

    Evaluation counts: the counts are whole numbers, whose sum has the same bits in any order. The
    loss of an evaluation may differ in its last bits on a GPU.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
