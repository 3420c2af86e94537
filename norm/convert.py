"""``convert_norm``: exchange the normalisation layers of a model, in place, and change them back.

BatchNorm and the two SyncBatchNorm differ only in what they compute. A layer that turns from one
into another stays the same object and gets another class: its parameters (and an optimizer that
holds them), buffers, hooks and attributes are untouched, and a module registered under two names
stays one module. FrozenBatchNorm and GroupNorm hold other things: they are new modules around the
same tensors.
"""

import warnings

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .groups import process_group
from .layer import SyncBatchNorm

KINDS = ("sync_bn", "bn", "group_norm", "frozen_bn")


class NormError(ValueError):
    """The normalisation of a model can't be chosen or converted as asked; one or two sentences."""


MAX_GROUPS = 32  # Wu and He, 2018 (arXiv:1803.08494), table 3
MIN_CHANNELS_PER_GROUP = 2


class BatchNorm(_BatchNorm):
    """Plain BatchNorm for any number of dimensions: a reverted layer of unknown origin."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"Expected input of shape (N, C, ...), got {input.dim()} dimensions.")


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics, weight and bias, all buffers; (N, C, ...) of any dimension.

    Its state_dict has torchvision's keys for FrozenBatchNorm2d, and loads BatchNorm's.
    """

    def __init__(self, weight, bias, running_mean: Tensor, running_var: Tensor, eps: float):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("running_mean", running_mean)
        self.register_buffer("running_var", running_var)
        self.eps = eps

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, ...), with the stored statistics."""
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Channels and eps."""
        return f"{len(self.running_mean)}, eps={self.eps}"


class _ThenActivation:
    """Mixed into a normalisation: timm's dropout and activation follow it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class SyncBatchNormAct(_ThenActivation, SyncBatchNorm):
    """SyncBatchNorm in place of timm's BatchNormAct2d."""


class FrozenBatchNormAct(_ThenActivation, FrozenBatchNorm):
    """FrozenBatchNorm in place of timm's BatchNormAct2d."""


class GroupNormAct(_ThenActivation, nn.GroupNorm):
    """GroupNorm in place of timm's BatchNormAct2d."""


def convert_norm(
    model: nn.Module, kind: str, *, impl: str = "own", group_size: int | None = None
) -> tuple[nn.Module, list[str]]:
    """Turn every BatchNorm layer of ``model`` into ``kind``, in place.

    Converts BatchNorm1d/2d/3d, timm's BatchNormAct2d (whose dropout and activation stay),
    FrozenBatchNorm, torch's SyncBatchNorm and this folder's. Other subclasses of BatchNorm stay as
    they are, with a warning, because it is not known what they compute. On an error no layer is
    converted.

    Args:
        model: not yet wrapped in DDP.
        kind: "sync_bn", "bn" (which also changes SyncBatchNorm back), "group_norm" or "frozen_bn".
        impl: for "sync_bn": "own" or "torch" (torch.nn.SyncBatchNorm, CUDA only).
        group_size: for "sync_bn": synchronise within groups of this many consecutive ranks, for
            instance the processes of one node. A collective: every rank has to make the call.

    Returns:
        The model (another object only if the model itself is a single layer) and the names of the
        converted layers: none where all are of that kind already.

    Raises:
        NormError: an unknown ``kind`` or ``impl``; a model without BatchNorm or wrapped already;
            channels that don't divide into groups; no running statistics to freeze; a
            ``group_size`` that doesn't fit.
    """
    if kind not in KINDS:
        raise NormError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if impl not in ("own", "torch"):
        raise NormError(f"impl must be own or torch, got {impl!r}.")
    _refuse_wrapped(model)
    target = f"sync_bn ({impl})" if kind == "sync_bn" else kind
    if group_size is not None and target == "sync_bn (torch)":
        raise NormError(
            "torch's SyncBatchNorm can't be copied once it has a process group, which averaged "
            "weights need: group_size needs impl 'own'."
        )
    layers, already, unknown = _survey(model, target, regroup=group_size is not None)
    if unknown:
        warnings.warn(
            f"convert_norm leaves {len(unknown)} layers as they are, because it doesn't know what "
            f"their classes compute beyond BatchNorm: {', '.join(unknown)}.",
            stacklevel=2,
        )
    if not layers and not already:
        raise NormError(
            f"There is nothing to convert to {kind}: {type(model).__name__} has no BatchNorm layer"
            f"{_other_norms(model)}."
        )
    for name, layer in layers.items():
        _check(name, layer, kind)
    numbers = {module: number for number, module in enumerate(model.modules())}
    subgroup = None if kind != "sync_bn" or group_size is None else _subgroup(group_size)
    new = {}
    for layer in layers.values():
        group = subgroup
        if kind == "sync_bn" and group_size is None:  # a layer that has a group of its own keeps it
            group = _group_of(layer)
        new[layer] = _convert(layer, target, group, numbers[layer])
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model), list(layers)


def family(module: nn.Module) -> str | None:
    """Which normalisation a module is.

    Returns:
        "bn", "sync_bn (own)", "sync_bn (torch)", "frozen_bn" or "group_norm"; "unknown_bn" for
        another subclass of BatchNorm; None for anything else.
    """
    kind = type(module)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm):
        return "bn"
    if kind in (SyncBatchNorm, SyncBatchNormAct):
        return "sync_bn (own)"
    if kind is nn.SyncBatchNorm:
        return "sync_bn (torch)"
    if kind in (FrozenBatchNorm, FrozenBatchNormAct):
        return "frozen_bn"
    if isinstance(module, nn.GroupNorm):
        return "group_norm"
    # By name, so that neither library is imported for a model that isn't theirs.
    library = kind.__module__.partition(".")[0]
    if library in ("torchvision", "timm"):
        known = {
            "BatchNormAct2d": "bn",
            "SyncBatchNormAct": "sync_bn (torch)",
            "FrozenBatchNorm2d": "frozen_bn",
            "FrozenBatchNormAct2d": "frozen_bn",
        }
        if kind.__name__ in known:
            return known[kind.__name__]
    return "unknown_bn" if isinstance(module, _BatchNorm) else None


def _survey(
    model: nn.Module, target: str, regroup: bool
) -> tuple[dict[str, nn.Module], int, list[str]]:
    """The layers to convert by name, how many are right already, and the names of unknown ones."""
    layers, already, unknown = {}, 0, []
    for name, module in model.named_modules():
        found = family(module)
        if found == target and not regroup:
            already += 1
        elif found == "unknown_bn":
            unknown.append(f"{name} ({type(module).__name__})")
        elif found not in (None, "group_norm"):
            layers[name] = module
    return layers, already, unknown


def _check(name: str, layer: nn.Module, kind: str) -> None:
    if kind == "group_norm":
        channels = len(layer.running_mean) if family(layer) == "frozen_bn" else layer.num_features
        if _groups(channels) is None:
            raise NormError(
                f"Layer {name} has {channels} channels, which don't divide into groups of equal "
                f"size, so GroupNorm can't replace its BatchNorm: choose sync_bn or bn."
            )
    if kind == "frozen_bn" and layer.running_mean is None:
        raise NormError(
            f"Layer {name} keeps no running statistics (track_running_stats=False), so there is "
            f"nothing to freeze: choose sync_bn or bn."
        )


def _groups(channels: int) -> int | None:
    """The largest power of two that divides the channels and leaves at least 2 in a group."""
    groups = MAX_GROUPS
    while groups > 1:
        if channels % groups == 0 and channels // groups >= MIN_CHANNELS_PER_GROUP:
            return groups
        groups //= 2
    return None


def _convert(
    layer: nn.Module, target: str, group: dist.ProcessGroup | None, number: int
) -> nn.Module:
    if family(layer) == "frozen_bn":
        layer = _thaw(layer)
    _revert(layer)
    has_activation = hasattr(layer, "act")
    if target == "sync_bn (own)":
        layer.plain_class = type(layer)
        layer.group_name = None if group is None else group.group_name
        layer.number = number
        layer.__class__ = SyncBatchNormAct if has_activation else SyncBatchNorm
    elif target == "sync_bn (torch)":
        layer.plain_class = type(layer)
        layer.process_group = group
        layer.__class__ = _timm("SyncBatchNormAct") if has_activation else nn.SyncBatchNorm
    elif target == "frozen_bn":
        kind = FrozenBatchNormAct if has_activation else FrozenBatchNorm
        weight, bias = (None if t is None else t.detach() for t in (layer.weight, layer.bias))
        frozen = kind(weight, bias, layer.running_mean, layer.running_var, layer.eps)
        frozen.plain_class = type(layer)
        return _carry_over(layer, frozen)
    elif target == "group_norm":
        kind = GroupNormAct if has_activation else nn.GroupNorm
        norm = kind(_groups(layer.num_features), layer.num_features, layer.eps, affine=False)
        norm.affine, norm.weight, norm.bias = layer.affine, layer.weight, layer.bias
        return _carry_over(layer, norm)
    return layer


def _group_of(layer: nn.Module) -> dist.ProcessGroup | None:
    """The group that a SyncBatchNorm of either kind was given; None for all ranks."""
    name = getattr(layer, "group_name", None)
    return getattr(layer, "process_group", None) if name is None else process_group(name)


def _revert(layer: _BatchNorm) -> None:
    """Change a SyncBatchNorm of either kind back to the class it was, or to plain BatchNorm."""
    if family(layer) == "bn":
        return
    fallback = _timm("BatchNormAct2d") if hasattr(layer, "act") else BatchNorm
    layer.__class__ = layer.__dict__.pop("plain_class", fallback)
    for attribute in ("group_name", "number", "process_group"):
        layer.__dict__.pop(attribute, None)


def _thaw(frozen: nn.Module) -> _BatchNorm:
    """A BatchNorm that trains, from a frozen one of this project, torchvision or timm."""
    has_activation = hasattr(frozen, "act")
    # Those of torchvision and timm are all for images.
    fallback = _timm("BatchNormAct2d") if has_activation else nn.BatchNorm2d
    kind = frozen.__dict__.get("plain_class", fallback)
    affine = frozen.weight is not None
    layer = kind(len(frozen.running_mean), affine=False)
    # torchvision's detectors freeze with eps 0, by which a channel that goes silent would divide.
    layer.eps = frozen.eps or layer.eps
    layer.momentum = frozen.__dict__.get("momentum", layer.momentum)
    layer.affine = affine
    if affine:
        layer.weight = nn.Parameter(frozen.weight)
        layer.bias = None if frozen.bias is None else nn.Parameter(frozen.bias)
    layer.running_mean, layer.running_var = frozen.running_mean, frozen.running_var
    layer.num_batches_tracked = layer.num_batches_tracked.to(frozen.running_mean.device)
    return _carry_over(frozen, layer, but=("plain_class",))


def _carry_over(old: nn.Module, new: nn.Module, but: tuple[str, ...] = ()) -> nn.Module:
    """Give ``new`` the mode, hooks, submodules and further attributes of ``old``."""
    new.training = old.training
    new._modules.update(old._modules)
    for name, value in old.__dict__.items():
        if name not in but and (name not in new.__dict__ or "_hook" in name):
            new.__dict__[name] = value
    return new


def _refuse_wrapped(model: nn.Module) -> None:
    wrappers = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
    for module in model.modules():
        if type(module).__name__ in wrappers:
            raise NormError(
                f"The model is wrapped in {type(module).__name__} already, which holds on to the "
                f"layers it was given: convert the normalisation before wrapping the model."
            )


def _subgroup(size: int) -> dist.ProcessGroup | None:
    """This rank's group of ``size`` consecutive ranks, or None where that is all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        raise NormError(
            "group_size needs several processes: start them with accelerate launch or torchrun, or "
            "leave group_size out."
        )
    world = dist.get_world_size()
    if size < 2 or world % size:
        raise NormError(
            f"group_size {size} does not fit {world} processes: choose a number from 2 up that "
            f"divides {world}."
        )
    return None if size == world else dist.new_subgroups(size)[0]


def _other_norms(model: nn.Module) -> str:
    """'; it has X' for the normalisation layers that aren't BatchNorm."""
    names = {type(m).__name__ for m in model.modules() if is_other_norm(m)}
    lazy = any(
        isinstance(m, LazyModuleMixin) and m.has_uninitialized_params() for m in model.modules()
    )
    if lazy:
        return " that is initialised (run one batch through lazy layers first)"
    return f" (it has {', '.join(sorted(names))})" if names else ""


def is_other_norm(module: nn.Module) -> bool:
    """Whether a module normalises each sample alone, as GroupNorm, LayerNorm and their like do."""
    names = ("GroupNorm", "LayerNorm", "RMSNorm", "InstanceNorm")
    return any(name in type(module).__name__ for name in names)


def _timm(name: str) -> type:
    from timm.layers import norm_act  # only reached with a model of timm's

    return getattr(norm_act, name)
