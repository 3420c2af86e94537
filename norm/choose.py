"""choose_norm: the rule behind `--norm auto`."""

from dataclasses import dataclass

from torch import nn

from .convert import KINDS, family, is_other_norm

# Up to this many samples per process, training gains from synchronised statistics: below 16 per
# worker the error of BatchNorm starts to grow (Wu and He, 2018, arXiv:1803.08494, figure 5).
SMALL_BATCH = 8

# Up to this many samples in one process, statistics are too noisy and no other rank can help.
TINY_BATCH = 4


@dataclass(frozen=True)
class NormChoice:
    """A kind for `convert_norm` ("none": convert nothing), and the reason in one sentence."""

    kind: str
    reason: str


def choose_norm(
    norm: str, model: nn.Module, num_processes: int, batch_size_per_process: int
) -> NormChoice:
    """What `--norm` comes to for this model and launch.

    Args:
        norm: auto, or the kind asked for.
        model: looked through for the layers it has.
        num_processes: over which the statistics could be synchronised.
        batch_size_per_process: samples of one forward on one process.

    Raises:
        ValueError: a norm that doesn't exist.
    """
    if norm not in ("auto", *KINDS):
        raise ValueError(f"norm is one of auto, {', '.join(KINDS)}; got {norm!r}")
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
            f"{batch_size_per_process} are noisy: --norm group_norm does not depend on the batch.",
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
