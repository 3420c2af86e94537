"""``rank_disagreement``: how far apart the ranks' batch statistics are.

with rank_disagreement(model) as probe:      # in one step out of many; the others cost nothing
    loss = criterion(model(images), labels)
print(probe.result.share, probe.result.worst_layer)
"""

from dataclasses import dataclass
from math import sqrt
from types import TracebackType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .running_stats import joined_statistics, recorded_statistics

# From HIGH up the ranks normalise visibly differently; below LOW BatchNorm is enough. With
# independent samples the share falls as 1/batch; 0.01 is a shift of a tenth of a deviation.
HIGH = 0.03
LOW = 0.01
# A share this far below that of chance: the ranks' means differ by rounding alone.
COPIES = 1e-9


@dataclass(frozen=True)
class Disagreement:
    """How much of the variance of the joined batch lies between the ranks, not within them.

    For one channel, share = Σ w_r (m_r - μ)² / σ², where w_r is the rank's part of the values (the
    correlation ratio η²): 0 where all ranks see the same mean, 1 where each sees a constant of its
    own. Its root is how far, in standard deviations, a rank's own mean is from the joined one.

    Attributes:
        share: averaged over channels, then over layers.
        by_chance: what ``share`` would be if all values, pixels too, were independent draws:
            (W-1)/(N-1). Far above it, whole samples differ, and a larger batch evens that out.
        worst_share: the largest of the layers.
        worst_layer: its name.
        layers: the share of each layer by name.
    """

    share: float
    by_chance: float
    worst_share: float
    worst_layer: str
    layers: dict[str, float]

    @property
    def shift(self) -> float:
        """Root of the share: typical distance of a rank's mean, in standard deviations."""
        return sqrt(self.share)

    @property
    def advice(self) -> str:
        """One sentence for the log."""
        if self.share < COPIES * self.by_chance:
            return (
                "the ranks' batches are copies of each other: the sampler doesn't share out the "
                "samples, and each step learns from one batch only."
            )
        found = (
            f"the ranks' batch means differ by {self.shift:.2f} standard deviations "
            f"(most in {self.worst_layer or 'the model'})"
        )
        if self.share >= HIGH:
            return f"{found}: each rank's own statistics are too noisy, choose sync_bn."
        if self.share >= LOW:
            return f"{found}: sync_bn may gain a little over bn."
        return f"{found}: they agree, bn is enough."


class rank_disagreement:
    """Context manager around one training forward; ``result`` is set when it ends.

    Looks at every BatchNorm or SyncBatchNorm layer in training mode, by a hook that exists only
    inside the context. Costs one more pass over each layer's input and, at the end, one collective
    for the whole model and one read on the host. All ranks have to enter it together, and get the
    same result. In one process, or if no layer ran, the share is 0.

    Args:
        model: wrapped or not; not a compiled one, whose graph has no place for the hooks.
    """

    def __init__(self, model: nn.Module):
        named = [
            (name, layer)
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and layer.training
        ]
        self.names = [name for name, _ in named]
        self.layers = [layer for _, layer in named]
        self.result = Disagreement(0.0, 0.0, 0.0, "", {})

    def __enter__(self) -> "rank_disagreement":
        self._recorder = recorded_statistics(self.layers)
        self._rows = self._recorder.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.__exit__(None, None, None)
        if kind is None and self.layers:
            self.result = self._measure()

    @torch.no_grad()
    def _measure(self) -> Disagreement:
        figures = []
        for ranks, joined in joined_statistics(self.layers, self._rows):
            channels = (len(joined) - 1) // 2
            means, numbers = ranks[:, :channels], ranks[:, -1:]
            mean, var, number = joined.split([channels, channels, 1])
            weights = numbers / number.clamp(min=1)
            between = (weights * (means - mean).square()).sum(0)
            # A channel of variance 0 is the same everywhere: 0 / tiny.
            share = (between / var.clamp(min=torch.finfo(var.dtype).tiny)).mean()
            by_chance = ((numbers > 0).sum() - 1) / (number - 1).clamp(min=1)
            figures.append(torch.stack([share, by_chance[0], number[0]]))
        rows = torch.stack(figures).tolist()  # the host waits for the device here
        seen = [(name, row) for name, row in zip(self.names, rows, strict=True) if row[2] > 0]
        if not seen:
            return self.result
        layers = {name: row[0] for name, row in seen}
        worst = max(layers, key=layers.__getitem__)
        by_chance = sum(row[1] for _, row in seen) / len(seen)
        share = sum(layers.values()) / len(layers)
        return Disagreement(share, by_chance, layers[worst], worst, layers)
