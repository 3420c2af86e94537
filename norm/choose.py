"""``choose_norm``: which normalisation a model needs, by its layers and the batch per process."""

from dataclasses import dataclass

from torch import nn

from .convert import KINDS, NormError, family, is_other_norm

# Up to this many samples per process, synchronised statistics help training: the error of BatchNorm
# grows below 16 per process (Wu and He, 2018, arXiv:1803.08494, figure 5).
SMALL_BATCH = 8

# Up to this many samples, one process alone gets noisy statistics.
TINY_BATCH = 4


@dataclass(frozen=True)
class NormChoice:
    """Which normalisation was chosen, and why.

    Attributes:
        kind: for ``convert_norm``; "none" where there is nothing to convert.
        reason: one sentence.
    """

    kind: str
    reason: str


def choose_norm(
    norm: str, model: nn.Module, num_processes: int, batch_size_per_process: int
) -> NormChoice:
    """Choose the normalisation of a model.

    Args:
        norm: "auto", or the kind asked for, which is chosen if it makes a difference.
        model: its layers decide what can be converted.
        num_processes: the processes that could share statistics.
        batch_size_per_process: samples per process and forward.

    Returns:
        The kind and the reason.

    Raises:
        NormError: ``norm`` is neither "auto" nor a kind.
    """
    if norm not in ("auto", *KINDS):
        raise NormError(f"norm must be one of auto, {', '.join(KINDS)}, got {norm!r}.")
    batch = f"{batch_size_per_process} per process"
    if norm == "sync_bn" and num_processes == 1:
        return NormChoice(
            "bn", "sync_bn was asked for, and in one process it is the same as BatchNorm."
        )
    if norm != "auto":
        return NormChoice(norm, f"{norm} was asked for.")

    families = {family(module) for module in model.modules()}
    if "bn" not in families:
        if "unknown_bn" in families:
            reason = (
                "The model's BatchNorm layers are of classes unknown here, and stay as they are."
            )
            return NormChoice("none", reason)
        if any(found and found.startswith("sync_bn") for found in families):
            return NormChoice("none", "The model is synchronised already.")
        if "frozen_bn" in families:
            return NormChoice("none", "The model's BatchNorm is frozen, so no batch changes it.")
        if any(is_other_norm(module) for module in model.modules()):
            return NormChoice("none", "The model's normalisation does not depend on the batch.")
        return NormChoice("none", "The model has no BatchNorm.")
    if num_processes == 1 and batch_size_per_process <= TINY_BATCH:
        return NormChoice(
            "bn",
            f"One process keeps BatchNorm, but its statistics over a batch of "
            f"{batch_size_per_process} are noisy: group_norm does not depend on the batch.",
        )
    if num_processes == 1:
        return NormChoice("bn", "One process has nothing to synchronise.")
    if batch_size_per_process <= SMALL_BATCH:
        return NormChoice(
            "sync_bn",
            f"A batch of {batch} is too small for its own statistics, so those of all "
            f"{num_processes} processes are joined.",
        )
    return NormChoice("bn", f"A batch of {batch} is large enough for its own statistics.")
