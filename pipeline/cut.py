"""Networks cut into stages: the sequence of a network's layers, what each costs, where to cut.

A stage is an ``nn.Module`` of its own that keeps its layers' names, so that the state dicts of all
stages together are that of the uncut network.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet

from errors import UserError
from models.syncbnnet import SyncBNNet


class Unit(NamedTuple):
    """Layers that stay in one stage: a residual block, the stem or the classifier.

    Attributes:
        name: of the first layer; the network can be cut before every unit but the first.
        layers: by their names in the network, in the order in which they are applied.
    """

    name: str
    layers: dict[str, nn.Module]


class Cost(NamedTuple):
    """What a unit costs.

    Attributes:
        parameters: how many numbers are trained.
        compute: floating-point operations of one sample's forward pass.
        shape: of one sample's output.
    """

    parameters: int
    compute: int
    shape: tuple[int, ...]


class GlobalMean(nn.Module):
    """(B, C, *size) → (B, C), the mean over the size."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over all but the first two dimensions."""
        return x.mean(dim=tuple(range(2, x.ndim)))


def units_of(model: nn.Module) -> list[Unit]:
    """The network as units, which applied one after the other are its forward pass.

    Args:
        model: torchvision's ResNet, of any depth and width, or SyncBNNet.

    Raises:
        UserError: any other network.
    """
    if isinstance(model, ResNet):
        stem = ("conv1", "bn1", "relu", "maxpool")
        blocks = [f"layer{stage}" for stage in range(1, 5)]
        pool = {"avgpool": model.avgpool, "flatten": nn.Flatten(1)}
        head = "fc"
    elif isinstance(model, SyncBNNet):
        stem = ("backbone.stem",)
        blocks = [f"backbone.stages.{stage}" for stage in range(len(model.backbone.stages))]
        pool = {"pool": GlobalMean()}
        head = "head"
    else:
        raise UserError(
            f"{type(model).__name__} can't be cut into stages: choose --model resnet18, resnet34, "
            "resnet50 or another of torchvision's ResNets, or syncbnnet, _s, _m or _l."
        )
    units = [Unit(stem[0], {name: model.get_submodule(name) for name in stem})]
    for stage in blocks:
        for number, block in enumerate(model.get_submodule(stage)):
            name = f"{stage}.{number}"
            units.append(Unit(name, {name: block}))
    # With the last block, so that a stage before the classifier sends C numbers, not C*H*W.
    units[-1].layers.update(pool)
    return [*units, Unit(head, {head: model.get_submodule(head)})]


def costs_of(units: Sequence[Unit], image_size: tuple[int, int]) -> list[Cost]:
    """What each unit costs for images (3, *image_size); computes shapes and no values."""
    x, costs = torch.empty(1, 3, *image_size, device="meta"), []
    for unit in units:
        layers = nn.Sequential(*unit.layers.values())
        parameters = sum(p.numel() for p in layers.parameters())
        # Copied unit by unit, since the whole network may be too large to have twice.
        layers = copy.deepcopy(layers).to("meta", torch.float32).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            x = layers(x)
        costs.append(Cost(parameters, counter.get_total_flops(), tuple(x.shape[1:])))
    return costs


def cut_at(units: Sequence[Unit], names: Sequence[str]) -> list[int]:
    """Where each stage begins, from the names of the layers before which to cut.

    Args:
        units: of the network.
        names: of layers ("layer3.1"), or of groups of layers ("layer3"), each of which stands for
            its first layer; in the network's order.

    Returns:
        The index of each stage's first unit; the first is 0.

    Raises:
        UserError: there is no such layer, or they aren't in the network's order.
    """
    places = {unit.name: index for index, unit in enumerate(units) if index}
    places |= {name.removesuffix(".0"): index for name, index in places.items()}
    for name in names:
        if name not in places:
            known = [unit.name.removesuffix(".0") for unit in units[1:]]
            raise UserError(
                f"--split_at: this network can't be cut before {name!r}; it can be before "
                f"{', '.join(known)}."
            )
    starts = [0, *(places[name] for name in names)]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise UserError(
            f"--split_at {','.join(names)} must name different layers in the network's order."
        )
    return starts


def cut_evenly(weights: Sequence[int], stages: int) -> list[int]:
    """Where each stage begins if the heaviest stage is as light as possible.

    Args:
        weights: what each unit costs.
        stages: how many stages, each of at least one unit.

    Returns:
        The index of each stage's first unit; the first is 0.

    Raises:
        UserError: there are fewer units than stages.
    """
    count = len(weights)
    if stages > count:
        raise UserError(
            f"A network of {count} pieces can't be cut into {stages} stages: use at most "
            f"{count} stages, or a deeper --model."
        )

    @functools.cache
    def best(first: int, stages: int) -> tuple[int, list[int]]:
        """The heaviest stage's weight, and the starts, of the units from ``first`` on."""
        if stages == 1:
            return sum(weights[first:]), [first]
        rests = [
            (second, best(second, stages - 1)) for second in range(first + 1, count - stages + 2)
        ]
        return min(
            (max(sum(weights[first:second]), heaviest), [first, *starts])
            for second, (heaviest, starts) in rests
        )

    return best(0, stages)[1]


@dataclass(frozen=True)
class Cut:
    """A network's stages, without their layers.

    Attributes:
        names: of the units.
        costs: of the units.
        starts: each stage's first unit.
        image_size: height and width of the network's input.
        balanced: "parameters" or "compute", of which the stages have equal shares as far as whole
            units allow; None if the cuts were given by name.
    """

    names: list[str]
    costs: list[Cost]
    starts: list[int]
    image_size: tuple[int, int]
    balanced: Literal["parameters", "compute"] | None

    def units(self, stage: int) -> slice:
        """The units of a stage."""
        return slice(self.starts[stage], [*self.starts, len(self.names)][stage + 1])

    def shapes(self, stage: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of one sample as a stage takes it, and as the stage returns it."""
        part = self.units(stage)
        before = self.costs[part.start - 1].shape if stage else (3, *self.image_size)
        return before, self.costs[part.stop - 1].shape

    def describe(self) -> list[dict[str, Any]]:
        """Each stage's first and last unit, and its shares of parameters and computation."""
        parameters, compute, _ = map(list, zip(*self.costs, strict=True))
        parts = [self.units(stage) for stage in range(len(self.starts))]
        return [
            {
                "first": self.names[part.start],
                "last": self.names[part.stop - 1],
                "parameters": sum(parameters[part]) / sum(parameters),
                "compute": sum(compute[part]) / sum(compute),
            }
            for part in parts
        ]

    def lines(self) -> list[str]:
        """The stages in a sentence each, and advice where most of them would wait for one."""
        described = self.describe()
        lines = [
            f"Stage {number} of {len(described)}: "
            f"{' to '.join(dict.fromkeys((each['first'], each['last'])))}, "
            f"{each['parameters']:.0%} of the parameters, {each['compute']:.0%} of the computation."
            for number, each in enumerate(described, start=1)
        ]
        largest = max(each["compute"] for each in described)
        if self.balanced == "parameters" and largest * len(described) > 1.5:
            lines.append(
                f"One stage has {largest:.0%} of the computation, and the others wait for it: "
                "--balance compute divides the computation evenly instead of the parameters."
            )
        return lines


def cut_network(
    model: nn.Module,
    image_size: tuple[int, int],
    stages: int,
    balance: Literal["parameters", "compute"] = "parameters",
    cuts: Sequence[str] = (),
) -> Cut:
    """Choose where to cut a network.

    Args:
        model: the network.
        image_size: height and width of its input.
        stages: how many, where ``cuts`` is empty.
        balance: what the stages get equal shares of, where ``cuts`` is empty.
        cuts: the layers before which to cut, as ``cut_at`` takes them.

    Raises:
        UserError: a network that can't be cut, or not so.
    """
    units = units_of(model)
    costs = costs_of(units, image_size)
    if cuts:
        starts = cut_at(units, cuts)
    else:
        starts = cut_evenly([getattr(cost, balance) for cost in costs], stages)
    names = [unit.name for unit in units]
    return Cut(names, costs, starts, image_size, None if cuts else balance)


class Stage(nn.Module):
    """Consecutive units of a network, under the names that they have in it.

    Args:
        units: of this stage.
        compute_dtype: bfloat16 for mixed precision (autocast), which is also the output's dtype.
    """

    def __init__(self, units: Sequence[Unit], compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self._order = []  # a list, which nn.Module doesn't register under names of its own
        for unit in units:
            for name, layer in unit.layers.items():
                self._register(name, layer)
                self._order.append(layer)

    def _register(self, name: str, layer: nn.Module) -> None:
        *path, last = name.split(".")
        parent = self
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the units one after the other."""
        mixed = self.compute_dtype is not None
        with torch.autocast(x.device.type, self.compute_dtype, enabled=mixed):
            for layer in self._order:
                x = layer(x)
        return x.to(self.compute_dtype) if mixed else x
