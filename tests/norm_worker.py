"""What every rank runs for test_norm_processes.py: checks, all of one world size in one launch.

A check is a function of (rank, world). It may fail on one rank only; the ranks then tell each other
before the next one starts, so that no rank waits in a collective that another will not enter.
"""

import copy
import gc
import json
import os
import pickle
import time
import traceback
import weakref
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from norm import (
    SyncBatchNorm,
    average_running_stats,
    convert_norm,
    exchange_locally,
    precise_bn,
    rank_disagreement,
)
from norm import local_exchange as local_exchange_module
from norm.convert import BatchNorm
from norm.groups import Group, _all_reduce, _is_gloo, find_group, gather, gather_by_sum

CHECKS: dict[int, dict] = {2: {}, 3: {}, 4: {}}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = ((5,), (5, 7), (5, 4, 6), (5, 3, 4, 2))  # without N; C = 5


def check(*worlds):
    """Register a check for these world sizes."""

    def register(function):
        for world in worlds:
            CHECKS[world][function.__name__] = function
        return function

    return register


def run(rank, world, folder):
    """The body of one rank: every check of this world size, the outcome as JSON."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=90),
    )
    if world == 3:  # all of this world's checks by the quick way
        assert exchange_locally()
    outcome, seconds = {}, {}
    for name, function in CHECKS[world].items():
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            function(rank, world)
            error = ""
        except Exception:
            error = f"rank {rank}: {traceback.format_exc()}"
        errors = [None] * world
        dist.all_gather_object(errors, error)
        outcome[name] = "\n".join(e for e in errors if e)
        seconds[name] = time.perf_counter() - start
        if rank == 0:
            Path(folder, "outcome.json").write_text(json.dumps(outcome))
            Path(folder, "seconds.json").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def error(got, want):
    """Largest difference, relative to the largest value where that is above 1."""
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    if not got.numel():
        return 0.0
    got, want = got.double(), want.double()
    return ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()


def total(tensor, group=None):
    """Sum over the ranks."""
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor, group=group)
    return tensor


def assert_same_bits(*tensors):
    """The tensors are bit-identical on all ranks."""
    for tensor in tensors:
        everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, tensor.contiguous())
        assert all(torch.equal(other, everyone[0]) for other in everyone)


def laid_out(x, channels_last):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not channels_last or x.dim() not in formats:
        return x.contiguous()
    return x.contiguous(memory_format=formats[x.dim()])


def worst_error(
    splits,
    shape,
    rank,
    dtype=torch.float64,
    channels_last=False,
    call=lambda layer, x: layer(x),
    layer=None,
    parameter_dtype=None,
    steps=2,
    group=None,
    **kwargs,
):
    """Largest error against one process's BatchNorm over the joined batch, in float64.

    Outputs, input gradients, parameter gradients and running statistics, over `steps` batches.
    """
    parameter_dtype = parameter_dtype or dtype
    generator = torch.Generator().manual_seed(sum(splits) + 31 * len(shape))
    if layer is None:
        layer = SyncBatchNorm(shape[0], dtype=parameter_dtype, **kwargs)
    else:
        kwargs = {"momentum": layer.momentum}
    one = BatchNorm(shape[0], dtype=torch.float64, **kwargs)
    if one.affine:
        with torch.no_grad():
            for parameter, reference in zip(layer.parameters(), one.parameters(), strict=True):
                parameter.copy_(torch.randn(shape[0], generator=generator))
                reference.copy_(parameter)
    worst = 0.0
    for _ in range(steps):
        joined = torch.randn((sum(splits), *shape), generator=generator, dtype=torch.float64)
        joined = (joined * 3 + 2).to(dtype)
        factor = torch.randn(joined.shape, generator=generator, dtype=torch.float64).to(dtype)
        x = laid_out(joined.split(splits)[rank], channels_last).requires_grad_()
        y = call(layer, x)
        assert y.dtype == dtype
        if x.numel():
            assert y.stride() == x.stride()
        layer.zero_grad()
        (y * factor.split(splits)[rank]).sum().backward()

        whole = joined.double().requires_grad_()
        expected = one(whole)
        one.zero_grad()
        (expected * factor.double()).sum().backward()
        worst = max(worst, error(y, expected.split(splits)[rank]))
        worst = max(worst, error(x.grad, whole.grad.split(splits)[rank]))
        for parameter, reference in zip(layer.parameters(), one.parameters(), strict=True):
            worst = max(worst, error(total(parameter.grad, group), reference.grad))
        for buffer, reference in zip(layer.buffers(), one.buffers(), strict=True):
            if buffer.dtype == parameter_dtype and parameter_dtype.itemsize < 4:
                # Rounded to 8 bits at each step by plain BatchNorm too.
                assert error(buffer, reference) < 1e-2
            else:
                worst = max(worst, error(buffer, reference))
    if group is None:
        assert_same_bits(*layer.buffers())
    return worst


def uneven(world):
    return [3, 5, 1, 4][:world]


# ------------------------------------------------------------------------------ the layer alone


@check(2, 3, 4)
def shapes_layouts_and_dtypes(rank, world):
    for dtype in (torch.float64, torch.float32):
        for shape in SHAPES:
            for channels_last in (False, True):
                for splits in ([4] * world, uneven(world)):
                    worst = worst_error(splits, shape, rank, dtype, channels_last)
                    assert worst < TOLERANCE[dtype], (dtype, shape, channels_last, splits, worst)


@check(2)
def half_precision(rank, world):
    for dtype in (torch.bfloat16, torch.float16):
        for shape in SHAPES:
            for parameter_dtype in (torch.float32, dtype):
                worst = worst_error(
                    uneven(world), shape, rank, dtype, parameter_dtype=parameter_dtype
                )
                assert worst < TOLERANCE[dtype], (dtype, shape, parameter_dtype, worst)


@check(4)
def statistics_of_bfloat16_keep_float32_precision(rank, world):
    splits = [1, 7, 0, 8]
    joined = torch.randn(16, 6, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = SyncBatchNorm(6)
    layer(joined.split(splits)[rank])
    one = BatchNorm(6, dtype=torch.float64)
    one(joined.double())
    assert error(layer.running_var, one.running_var) < 1e-6
    assert error(layer.running_mean, one.running_mean) < 1e-6


@check(2)
def options(rank, world):
    for kwargs in (
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": None},
        {"momentum": 1.0},
        {"eps": 1e-2},
        {"affine": False, "track_running_stats": False},
    ):
        worst = worst_error(uneven(world), (5, 4, 6), rank, steps=4, **kwargs)
        assert worst < 1e-12, (kwargs, worst)


@check(2, 3, 4)
def some_ranks_empty(rank, world):
    for splits in ([0] + [4] * (world - 1), [4] + [0] * (world - 1)):
        for shape in SHAPES:
            for momentum in (0.1, None):
                worst = worst_error(splits, shape, rank, momentum=momentum)
                assert worst < 1e-12, (splits, shape, worst)
        for dtype in (torch.float32, torch.bfloat16):
            assert worst_error(splits, (5, 4, 6), rank, dtype) < TOLERANCE[dtype]


@check(2, 3)
def all_ranks_empty(rank, world):
    for momentum in (0.1, None):
        layer = SyncBatchNorm(3, momentum=momentum)
        before = copy.deepcopy(layer.state_dict())
        x = torch.zeros(0, 3, 4, 4, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.shape
        assert x.grad.shape == x.shape
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert torch.equal(layer.weight.grad, torch.zeros(3))


@check(2, 3)
def one_value_in_all(rank, world):
    layer = SyncBatchNorm(3)
    x = torch.full((1 if rank == 1 else 0, 3), 7.0, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))  # the bias
    assert torch.equal(x.grad, torch.zeros_like(x))
    torch.testing.assert_close(layer.running_mean, torch.full((3,), 0.7))
    torch.testing.assert_close(layer.running_var, torch.full((3,), 0.9))


@check(4)
def subgroups(rank, world):
    model, names = convert_norm(nn.Sequential(nn.BatchNorm2d(5)).double(), "sync_bn", group_size=2)
    assert names == ["0"]
    splits = [3, 5] if rank < 2 else [2, 1]
    group = torch.distributed.distributed_c10d._resolve_process_group(model[0].group_name)
    worst = worst_error(splits, (5, 4, 6), rank % 2, layer=model[0], group=group)
    assert worst < 1e-12
    # The pairs saw other batches: only averaging makes their running statistics equal.
    means = [torch.empty_like(model[0].running_mean) for _ in range(world)]
    dist.all_gather(means, model[0].running_mean)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])
    average_running_stats(model)
    assert_same_bits(model[0].running_mean, model[0].running_var)
    torch.testing.assert_close(model[0].running_mean, (means[0] + means[2]) / 2)
    copied = copy.deepcopy(model)
    assert copied[0].group_name == model[0].group_name
    # A layer that is synchronised already takes another group, and keeps its own if none is named.
    name = model[0].group_name
    assert convert_norm(model, "sync_bn") == (model, []) and model[0].group_name == name
    assert convert_norm(model, "sync_bn", group_size=4) == (model, ["0"])
    assert model[0].group_name is None
    # A named group can be compiled too.
    torch._dynamo.reset()
    layer = SyncBatchNorm(5, dtype=torch.float64, group_name=name)
    function = torch.compile(layer, backend="aot_eager", fullgraph=True)
    worst = worst_error(
        splits, (5, 4, 6), rank % 2, call=lambda _, x: function(x), layer=layer, group=group
    )
    assert worst < 1e-12
    torchs = nn.Sequential(nn.SyncBatchNorm(5, process_group=group))
    assert convert_norm(torchs, "sync_bn", impl="own")[0][0].group_name == name


@check(2)
def deepcopy_and_pickle(rank, world):
    layer = SyncBatchNorm(5, dtype=torch.float64, group_name=dist.group.WORLD.group_name)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert worst_error([3, 5], (5, 4, 6), rank, layer=other) < 1e-12
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(5).state_dict())


@check(2)
def collectives_per_layer(rank, world):
    """One forward and one backward: counted by the operators that were called."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function)
            self.calls += "c10d" in name and "wait" not in name
            return function(*args, **(kwargs or {}))

    layer, x = SyncBatchNorm(5), torch.randn(2, 5, 3, requires_grad=True)
    with Count() as forward:
        y = layer(x)
    with Count() as backward:
        y.sum().backward()
    assert (forward.calls, backward.calls) == (1, 1)
    # Input that needs no gradient needs no collective in the backward.
    y = layer(x.detach())
    with Count() as backward:
        y.sum().backward()
    assert backward.calls == 0


@check(2)
def evaluation_has_no_collective(rank, world):
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3))
    plain = BatchNorm(3)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3)
    if rank == 0:  # would hang, did the layer wait for the other rank
        assert torch.equal(layer.eval()(x), plain.eval()(x))


@check(2)
def non_contiguous_input(rank, world):
    joined = torch.randn(8, 6, 5, 4, dtype=torch.float64)
    parts = joined.transpose(1, 3).split(4)  # neither layout
    layer, one = SyncBatchNorm(4).double(), BatchNorm(4).double()
    y = layer(parts[rank])
    torch.testing.assert_close(y, one(joined.transpose(1, 3)).split(4)[rank], rtol=0, atol=1e-12)
    # A gradient that is expanded from one number, as sum() sends.
    x = parts[rank].clone().requires_grad_()
    layer(x).sum().backward()
    assert x.grad.abs().max() < 1e-12


@check(2)
def autocast(rank, world):
    conv = nn.Conv2d(3, 5, 3)
    layer, one = SyncBatchNorm(5), BatchNorm(5)
    joined = torch.randn(6, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(conv(joined.split([2, 4])[rank]))
        expected = one(conv(joined))
    assert y.dtype == expected.dtype == torch.bfloat16
    assert error(y, expected.split([2, 4])[rank]) < 2e-2
    y.float().square().mean().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert error(layer.running_var, one.running_var) < 1e-4


@check(2)
def mean_of_a_thousand_deviations(rank, world):
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(16, 8, 16, 16, generator=generator, dtype=torch.float64) + 1e3
    joined = joined.float()
    for channels_last in (False, True):
        layer = SyncBatchNorm(8, momentum=1.0)
        layer(laid_out(joined.split([6, 10])[rank], channels_last))
        exact = joined.double().var((0, 2, 3))
        assert ((layer.running_var.double() - exact) / exact).abs().max() < 1e-5


@check(2)
def checkpointing_moves_statistics_once(rank, world):
    for reentrant in (False, True):
        for preserve in (0.1, None):
            x = torch.randn(4, 5, 3, requires_grad=True)
            block = nn.Sequential(
                nn.Conv1d(5, 5, 1), SyncBatchNorm(5, momentum=preserve), nn.ReLU()
            )
            twin = copy.deepcopy(block)
            for _ in range(2):
                checkpoint(block, x, use_reentrant=reentrant).square().sum().backward()
                checkpointed, x.grad = x.grad, None
                twin(x).square().sum().backward()
                direct, x.grad = x.grad, None
                torch.testing.assert_close(checkpointed, direct)
            for name, value in twin.state_dict().items():
                assert torch.equal(value, block.state_dict()[name]), (reentrant, name)
            assert block[1].num_batches_tracked == 2


@check(2)
def double_backward(rank, world):
    splits = [3, 5]
    generator = torch.Generator().manual_seed(3)
    joined = torch.randn(8, 5, 4, generator=generator, dtype=torch.float64)
    factor = torch.randn(8, 5, 4, generator=generator, dtype=torch.float64)

    def penalty(layer, x, factor):
        """A gradient penalty that depends on all three first derivatives, and their own."""
        inputs = (x, layer.weight, layer.bias)
        grads = torch.autograd.grad((layer(x).sin() * factor).sum(), inputs, create_graph=True)
        return grads

    layer, one = SyncBatchNorm(5).double(), BatchNorm(5).double()
    with torch.no_grad():
        for parameter, reference in zip(layer.parameters(), one.parameters(), strict=True):
            reference.copy_(parameter.normal_(generator=generator))
    x = joined.split(splits)[rank].clone().requires_grad_()
    whole = joined.clone().requires_grad_()
    grads = penalty(layer, x, factor.split(splits)[rank])
    wholes = penalty(one, whole, factor)
    assert error(grads[0].detach(), wholes[0].detach().split(splits)[rank]) < 1e-12
    # dx enters squared: a sum over ranks. (dw, db are local parts: linear in them sums up too.)
    loss = grads[0].square().sum() + grads[1].sum() + grads[2].sum()
    reference = wholes[0].square().sum() + wholes[1].sum() + wholes[2].sum()
    second = torch.autograd.grad(loss, (x, layer.weight), create_graph=True)
    expected = torch.autograd.grad(reference, (whole, one.weight), create_graph=True)
    assert error(second[0].detach(), expected[0].detach().split(splits)[rank]) < 1e-11
    assert error(total(second[1]), expected[1].detach()) < 1e-11


@check(2)
def forward_mode_is_refused(rank, world):
    from torch.autograd import forward_ad

    layer = SyncBatchNorm(3)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(4, 3), torch.randn(4, 3))
        try:
            layer(x)
        except NotImplementedError as refusal:
            assert "forward-mode" in str(refusal)
        else:
            raise AssertionError("accepted")


@check(2)
def wrong_input_is_refused(rank, world):
    for shape in ((3,), (2, 4, 5)):
        try:
            SyncBatchNorm(3)(torch.zeros(shape))
        except ValueError as refusal:
            assert "Expected" in str(refusal)
        else:
            raise AssertionError(f"accepted {shape}")


@check(2, 3)
def random_cases(rank, world):
    """Shapes, dtypes, layouts, splits and options drawn at random, the same on all ranks."""

    @settings(
        max_examples=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking would go another way on each rank
        suppress_health_check=list(HealthCheck),
    )
    @given(
        splits=st.lists(st.integers(0, 6), min_size=world, max_size=world),
        shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
        dtype=st.sampled_from([torch.float64, torch.float32]),
        channels_last=st.booleans(),
        affine=st.booleans(),
        momentum=st.sampled_from([None, 0.1, 0.7]),
        track_running_stats=st.booleans(),
    )
    def case(splits, shape, dtype, **options):
        if sum(splits) * torch.Size(shape[1:]).numel() < 2:
            return  # one process's BatchNorm refuses it
        # Of two or three values nearly alike, the reference itself is ill-conditioned in float32.
        eps = 1e-5 if dtype == torch.float64 else 1e-1
        worst = worst_error(splits, tuple(shape), rank, dtype, eps=eps, **options)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        everyone = torch.tensor(worst)
        dist.all_reduce(everyone, dist.ReduceOp.MAX)  # so that all ranks fail together
        assert everyone < tolerance, worst

    case()


# ------------------------------------------------------------------------------------ compiled


@check(2)
def compiled(rank, world):
    """Inductor, one graph: uneven and empty batches of both layouts."""
    torch._dynamo.reset()
    layer = SyncBatchNorm(5, dtype=torch.float64)
    function = torch.compile(layer, fullgraph=True)
    for splits in ([3, 5], [0, 4]):
        for channels_last in (False, True):
            worst = worst_error(
                splits,
                (5, 4, 6),
                rank,
                channels_last=channels_last,
                call=lambda layer, x: function(x),
                layer=copy_of_defaults(layer),
            )
            assert worst < 1e-12, (splits, channels_last, worst)


@check(2)
def compiled_on_one_rank(rank, world):
    """A rank whose compiler gives up runs eagerly, and meets the others in the same collectives."""
    torch._dynamo.reset()
    layer = SyncBatchNorm(5, dtype=torch.float64)
    function = layer if rank else torch.compile(layer, backend="aot_eager", fullgraph=True)
    for splits in ([3, 5], [4, 0]):
        worst = worst_error(
            splits,
            (5, 4, 6),
            rank,
            call=lambda layer, x: function(x),
            layer=copy_of_defaults(layer),
        )
        assert worst < 1e-12, (splits, worst)


@check(2, 3)
def gathering_by_a_sum(rank, world):
    """What CUDA tensors on gloo do."""
    group, row = find_group(None), torch.randn(5, generator=torch.Generator().manual_seed(rank))
    assert torch.equal(gather_by_sum(row, group), gather(row, group))
    assert _is_gloo(dist.group.WORLD)


@check(2)
def collectives_of_compiled_code(rank, world):
    """The two operators, one of which only CUDA and large worlds call."""
    torch._dynamo.reset()
    group, row = find_group(None), torch.randn(5, generator=torch.Generator().manual_seed(rank))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def both(row):
        return gather(row * 1, group), _all_reduce(row * 1, group.name, in_place=True)

    rows, total = both(row)
    assert torch.equal(rows, gather(row, group))
    assert torch.equal(total, rows.sum(0))


@check(2)
def checkpointing_in_a_compiled_graph(rank, world):
    torch._dynamo.reset()
    block = nn.Sequential(nn.Conv1d(5, 5, 1), SyncBatchNorm(5), nn.ReLU()).double()
    twin = copy.deepcopy(block)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return checkpoint(block, x, use_reentrant=False).square().sum()

    x = torch.randn(3 + rank, 5, 7, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(loss(x), x)
    (want,) = torch.autograd.grad(twin(x).square().sum(), x)
    assert error(got, want) < 1e-12
    for name, value in twin.state_dict().items():
        assert error(block.state_dict()[name], value) < 1e-12, name


def copy_of_defaults(layer):
    """The same object (it is compiled), as new."""
    layer.reset_running_stats()
    layer.reset_parameters()
    return layer


# ------------------------------------------------------------------------------ whole networks


class SmallUNet(nn.Module):
    """Two levels: enough for skip connections and upsampling."""

    def __init__(self, width=8):
        super().__init__()

        def block(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )

        self.first, self.second = block(3, width), block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last, self.head = block(2 * width, width), nn.Conv2d(width, 4, 1)

    def forward(self, x):
        first = self.first(x)
        second = self.second(nn.functional.max_pool2d(first, 2))
        return self.head(self.last(torch.cat([first, self.up(second)], 1)))


def networks():
    from torchvision.models import resnet18
    from torchvision.models.video import r3d_18

    return {
        "ResNet-18": (lambda: resnet18(num_classes=7), (3, 48, 48)),
        "U-Net": (SmallUNet, (3, 32, 32)),
        "R3D-18": (lambda: r3d_18(num_classes=5), (3, 2, 32, 32)),
    }


def training_error(build, shape, rank, world, compile_with=None):
    """Largest error of gradients (first step) and weights (three steps of SGD) in DDP."""
    torch.manual_seed(1)
    one = build().double()
    model, _ = convert_norm(copy.deepcopy(one), "sync_bn")
    if compile_with:
        torch._dynamo.reset()
        model = torch.compile(model, fullgraph=True, backend=compile_with)
    model = DistributedDataParallel(model, broadcast_buffers=False)
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        for m in (model, one)
    ]
    worst = 0.0
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        joined = torch.randn((2 * world, *shape), generator=generator, dtype=torch.float64)
        for network, x, optimizer in zip(
            (model, one), (joined.split(2)[rank], joined), optimizers, strict=True
        ):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            if network is one and step == 0:
                for got, want in zip(model.parameters(), one.parameters(), strict=True):
                    worst = max(worst, error(got.grad, want.grad))
        for optimizer in optimizers:
            optimizer.step()
    for got, want in zip(model.parameters(), one.parameters(), strict=True):
        worst = max(worst, error(got, want))
    for got, want in zip(model.buffers(), one.buffers(), strict=True):
        worst = max(worst, error(got, want))
    assert_same_bits(*model.buffers())
    return worst


@check(2)
def resnet18_in_ddp(rank, world):
    assert training_error(*networks()["ResNet-18"], rank, world) < 1e-11


@check(2)
def unet_in_ddp(rank, world):
    assert training_error(*networks()["U-Net"], rank, world) < 1e-11


@check(2)
def compiled_unet_in_ddp(rank, world):
    assert training_error(*networks()["U-Net"], rank, world, "inductor") < 1e-11


@check(2)
def traced_r3d18_in_ddp(rank, world):
    """What torch.compile captures and differentiates, run without Inductor's code generation."""
    assert training_error(*networks()["R3D-18"], rank, world, "aot_eager") < 1e-11


@check(2)
def accumulation_is_per_micro_batch(rank, world):
    """Statistics are those of a micro-batch over all ranks, not of the accumulated batch."""
    joined = torch.randn(8, 3, 4, dtype=torch.float64)
    layer, one = SyncBatchNorm(3).double(), BatchNorm(3).double()
    for micro in joined.split(4):
        y = layer(micro.split(2)[rank])
        assert error(y, one(micro).split(2)[rank]) < 1e-12
    assert error(layer.running_var, one.running_var) < 1e-12
    assert layer.num_batches_tracked == 2


@check(3)
def a_rank_that_skips_calls_with_nothing(rank, world):
    """A branch that one rank doesn't take, kept in its loss as x[:0]."""
    torch.manual_seed(0)
    joined = torch.randn(6, 3, 4, dtype=torch.float64)
    layer, one = SyncBatchNorm(3).double(), BatchNorm(3).double()
    x = joined.split(2)[rank].clone().requires_grad_()
    taken = x if rank else x[:0]
    loss = layer(taken).square().sum() + x.sum()
    loss.backward()
    whole = joined[2:].clone().requires_grad_()
    (one(whole).square().sum() + whole.sum()).backward()
    expected = torch.cat([torch.ones(2, 3, 4), whole.grad]).split(2)[rank]
    assert error(x.grad, expected) < 1e-12


# ------------------------------------------------------------------- running statistics and more


def small_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))


@check(2, 3)
def precise_bn_is_the_population(rank, world):
    """Against one process that runs the joined batches; unequal counts per rank and batch."""
    torch.manual_seed(0)
    plain = small_net().double()
    sync, _ = convert_norm(copy.deepcopy(plain), "sync_bn")
    sizes = [[2, 3, 1], [4, 1, 5]]
    joined = [torch.randn(sum(s[:world]), 3, 6, 6, dtype=torch.float64) * 2 + 1 for s in sizes]
    mine = [x.split(s[:world])[rank] for x, s in zip(joined, sizes, strict=True)]
    precise_bn(sync, iter(mine), 2)
    features = torch.cat([plain[0](x) for x in joined])
    torch.testing.assert_close(sync[1].running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(sync[1].running_var, features.var((0, 2, 3)))
    # The second layer sees what the first normalised by each batch's statistics.
    features = torch.cat([plain[:3](x) for x in joined])
    torch.testing.assert_close(sync[3].running_var, features.var((0, 2, 3)))
    assert sync[1].num_batches_tracked == 0
    assert_same_bits(*sync.buffers())
    precise_bn(plain, mine, 2, forward=lambda model, x: model(x))
    assert_same_bits(*(buffer for buffer in plain.buffers()))
    torch.testing.assert_close(plain[1].running_mean, sync[1].running_mean)


@check(2, 3)
def average_of_running_statistics(rank, world):
    model = small_net()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(rank + 1):
        model(torch.randn(2, 3, 6, 6, generator=generator))
    means = [torch.empty(4) for _ in range(world)]
    dist.all_gather(means, model[1].running_mean)
    assert not torch.equal(means[0], means[1])
    average_running_stats(model)
    torch.testing.assert_close(model[1].running_mean, torch.stack(means).mean(0))
    assert model[1].num_batches_tracked == rank + 1
    statistics = [m for name, m in model.named_buffers() if "running" in name]
    assert_same_bits(*statistics)
    # Synchronised layers agree already: no collective, which rank 1 would wait for in vain.
    sync, _ = convert_norm(small_net(), "sync_bn")
    if rank == 0:
        average_running_stats(sync)


@check(2, 4)
def disagreement(rank, world):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model.plain = nn.Identity()
    everyone = torch.randn(world * 50, 3, dtype=torch.float64)
    sync = nn.Sequential(SyncBatchNorm(3)).double()
    plain = nn.Sequential(nn.BatchNorm1d(3)).double()
    # Each rank the same: 0.
    for model in (sync, plain):
        with rank_disagreement(model) as probe:
            model(everyone)
        assert probe.result.share < 1e-12
        assert "copies of each other" in probe.result.advice
        # Each rank a level of its own, beside which its variation is nothing: 1.
        with rank_disagreement(model) as probe:
            model(everyone.split(50)[rank] * 1e-4 + rank)
        assert probe.result.share > 0.99
        assert probe.result.worst_layer == "0"
        assert "sync_bn" in probe.result.advice
        # Independent draws: what chance gives, which is (W-1)/(N-1), on average over channels.
        shares = []
        for seed in range(40):
            draws = torch.randn(
                world * 50, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            with rank_disagreement(model) as probe:
                model(draws.split(50)[rank])
            shares.append(probe.result.share)
        assert "sync_bn" in probe.result.advice or "enough" in probe.result.advice
        mean = sum(shares) / len(shares)
        assert 0.5 < mean / probe.result.by_chance < 1.5, (mean, probe.result.by_chance)
        assert abs(probe.result.by_chance - (world - 1) / (50 * world - 1)) < 1e-12
        # The same numbers everywhere, and no hook stays.
        everywhere = [None] * world
        dist.all_gather_object(everywhere, probe.result)
        assert all(result == everywhere[0] for result in everywhere)
        assert not model[0]._forward_pre_hooks


def raised(function) -> str:
    try:
        function()
    except RuntimeError as error:
        return str(error)
    return ""


@check(2)
def local_exchange(rank, world):
    """The same bits as by gloo; what can't be exchanged so goes by gloo; no wrong pairs."""
    group = find_group(None)
    rows = [torch.randn(n, dtype=dtype) for n in (1, 129, 8000, 40000) for dtype in TOLERANCE]
    by_gloo = [gather(row, group) for row in rows]
    assert exchange_locally()
    assert all(
        torch.equal(gather(row, group), whole) for row, whole in zip(rows, by_gloo, strict=True)
    )
    half = dist.new_group([0, 1])
    assert torch.equal(gather(rows[2], Group(half.group_name, 2)), by_gloo[2])
    # Ranks that are not at the same layer are noticed, and not mixed up: by the length of the row,
    # by its dtype, by the layer's number. From then on every exchange fails, at once.
    for row, layer in (
        (torch.zeros(3 + rank), 0),
        (torch.zeros(4 - 2 * rank, dtype=(torch.float32, torch.float64)[rank]), 0),
        (torch.zeros(3), rank),
    ):
        assert exchange_locally()
        message = raised(lambda row=row, layer=layer: gather(row, group._replace(layer=layer)))
        assert "programs differ" in message, message
        for _ in range(2):
            assert "Connection" in raised(lambda: gather(torch.zeros(3), group))
    # A rank that leaves is noticed by the other, at once.
    assert exchange_locally()
    if rank == 0:
        exchange_locally.__globals__["_local"].close()
    else:
        start = time.perf_counter()
        assert "Connection" in raised(lambda: gather(torch.zeros(3), group))
        assert time.perf_counter() - start < 5
    # A loader's worker that outlives its process keeps no peer waiting.
    assert exchange_locally()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.read(reader, 1)
        os._exit(0)
    exchange_locally.__globals__["_local"].close()
    assert raised(lambda: gather(torch.zeros(3), group))
    os.write(writer, b"x")
    os.waitpid(child, 0)
    assert not exchange_locally(False)
    assert torch.equal(gather(rows[0], group), by_gloo[0])


@check(2)
def local_exchange_with_small_buffers(rank, world):
    """As macOS gives them: rows that don't fit go by gloo, where they would wait for ever."""
    with mock.patch.object(local_exchange_module, "BUFFER_BYTES", 8192):
        assert exchange_locally()
    row = torch.randn(15_000)
    assert gather(row, find_group(None)).shape == (world, 15_000)
    small = [gather(torch.full((100,), float(step)), find_group(None)) for step in range(3)]
    assert [rows.mean() for rows in small] == [0, 1, 2]
    assert not exchange_locally(False)


@check(2)
def local_exchange_waits_as_long_as_the_group(rank, world):
    import socket
    import struct

    assert exchange_locally()
    for peer in exchange_locally.__globals__["_local"]._peers.values():
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            value = peer.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("ll"))
            assert struct.unpack("ll", value) == (90, 0)
    assert not exchange_locally(False)


@check(2)
def local_exchanges_are_let_go(rank, world):
    assert exchange_locally()
    old = weakref.ref(exchange_locally.__globals__["_local"])
    assert exchange_locally()
    gc.collect()
    assert old() is None
    assert not exchange_locally(False)


@check(2)
def accelerate_prepares_it(rank, world):
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    accelerator = Accelerator(
        cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    assert accelerator.num_processes == world
    torch.manual_seed(0)
    model, _ = convert_norm(small_net(), "sync_bn")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert isinstance(model, DistributedDataParallel)
    accelerator.backward(model(torch.randn(2 + rank, 3, 6, 6)).square().mean())
    optimizer.step()
    assert_same_bits(*model.parameters(), *model.buffers())
