"""norm in one process: conversion, choice, numerics, and what needs no second rank."""

import argparse
import copy
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from norm import (
    COMPILE_OPTIONS,
    FrozenBatchNorm,
    NormError,
    SyncBatchNorm,
    average_running_stats,
    check,
    choose_norm,
    convert_norm,
    cpu,
    fused,
    groups,
    kernels,
    precise_bn,
    rank_disagreement,
)
from norm import layer as norm_layer
from norm.groups import Group

ROOT = Path(__file__).parents[1]


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))
    )


def trained(model, shape=(4, 3, 8, 8)):
    """The model after two batches, so that its running statistics are its own."""
    for _ in range(2):
        model(torch.randn(shape) * 2 + 1)
    return model


# ---------------------------------------------------------------------------- the folder by itself

IN_A_STRANGERS_PROJECT = """
import sys
from torch import nn, randn
import batch_statistics as norm

model = nn.Sequential(
    nn.Conv2d(3, 8, 7, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
)
model, names = norm.convert_norm(model, norm.choose_norm("auto", model, 2, 2).kind)
assert names == ["1", "4"] and isinstance(model[1], norm.SyncBatchNorm), names
model(randn(2, 3, 32, 32)).square().sum().backward()
assert model[0].weight.grad.abs().sum() > 0
mine = {"norm", "data", "models", "engine", "tasks", "figures", "errors"} & set(sys.modules)
assert not mine, mine
"""


def test_the_folder_copied_into_another_project(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "norm", tmp_path / "batch_statistics", ignore=ignore)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", IN_A_STRANGERS_PROJECT]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_message_names_a_command_line_option():
    for path in set((ROOT / "norm").glob("*.py")) - {ROOT / "norm" / "check.py"}:
        assert not re.search(r"--[a-z]|sync_bn_(impl|group_size)", path.read_text()), path


# ------------------------------------------------------------------------------ the layer alone


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 5, 3), (2, 4, 3, 3, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_alone_it_is_batch_norm_to_the_bit(shape, momentum):
    layer = SyncBatchNorm(4, momentum=momentum)
    plain = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    plain = plain[len(shape)](4, momentum=momentum)
    for train in (True, True, False):
        layer.train(train)
        plain.train(train)
        x = torch.randn(shape)
        assert torch.equal(layer(x), plain(x))
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, layer.state_dict().values(), plain.state_dict().values()))


def test_alone_one_value_per_channel_is_refused_as_by_batch_norm():
    with pytest.raises(ValueError, match="more than 1 value"):
        SyncBatchNorm(4)(torch.zeros(1, 4))


def test_unknown_group_is_named_in_the_error(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        with pytest.raises((RuntimeError, ValueError), match="no-such-group"):
            SyncBatchNorm(4, group_name="no-such-group")(torch.zeros(2, 4))
        # A group of one: plain BatchNorm.
        x = torch.randn(5, 4)
        assert torch.equal(SyncBatchNorm(4)(x), nn.BatchNorm1d(4)(x))
    finally:
        dist.destroy_process_group()


@pytest.fixture
def group_of_one(tmp_path, monkeypatch):
    """The synchronised path, which the layer leaves where there is one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    group = Group(dist.group.WORLD.group_name, 1)
    monkeypatch.setattr(norm_layer, "find_group", lambda name: group)
    yield group
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_gradients_are_the_eager_ones(group_of_one, dtype):
    """With torch 2.11 they were zero, and nothing else was wrong."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    # Without a bias, whose gradient before a BatchNorm is rounding alone.
    conv = nn.Conv2d(3, 4, 3, bias=False, dtype=dtype)
    model = nn.Sequential(conv, nn.BatchNorm2d(4))
    twin = convert_norm(copy.deepcopy(model), "sync_bn", impl="own")[0]
    model = torch.compile(convert_norm(model, "sync_bn", impl="own")[0], backend="eager")
    x, factor = torch.randn(4, 3, 8, 8, dtype=dtype), torch.randn(4, 4, 6, 6, dtype=dtype)
    for network in (model, twin):
        network(x).backward(factor)
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)


class Branches(nn.Module):
    """Parallel layers, whose order a compiler could choose by what each needs of the memory."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.short = conv_norm(3, 8), conv_norm(8, 9), conv_norm(3, 9)
        self.wide, self.narrow = conv_norm(3, 13), conv_norm(13, 9)

    def forward(self, x):
        wide = self.wide(x).relu()
        y = self.second(self.first(x).relu())
        return (y + self.short(x) + self.narrow(wide)).relu()


def conv_norm(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), SyncBatchNorm(width))


def test_the_compiler_keeps_the_order_of_the_collectives(group_of_one, monkeypatch):
    """Ranks whose compilers choose otherwise would meet in different collectives."""
    torch._dynamo.reset()
    widths, gather = [], groups._all_gather

    def recording(flat, row, ranks):
        widths.append(row.numel())
        return gather(flat, row, ranks)

    monkeypatch.setattr(groups, "_all_gather", recording)
    model, x = Branches(), torch.randn(4, 3, 16, 16)
    model(x).sum().backward()
    eager = widths.copy()
    widths.clear()
    torch.compile(model, options=COMPILE_OPTIONS)(x).sum().backward()
    assert len(eager) == 10 and widths == eager


def test_what_the_self_test_finds(group_of_one, monkeypatch):
    for run in check.ALONE:
        run(0, 1, "cpu")
    right = kernels.input_gradient
    monkeypatch.setattr(kernels, "input_gradient", lambda *args: right(*args) * 0.99)
    with pytest.raises(check.Difference, match=r"gradient of the input is off by .*e-0"):
        check.float32(0, 1, "cpu")


def test_the_self_test_as_a_command():
    command = [sys.executable, "-m", "norm.check", "--devices", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[1:]
    assert len(lines) == sum(map(len, check.CHECKS.values()))
    assert all(line.endswith(": PASS") for line in lines)


def test_one_large_value_per_channel_gives_the_bias(group_of_one):
    layer = SyncBatchNorm(3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -1.0, 2.0]))
    x = torch.full((1, 3), 1234.567, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, layer.bias[None])
    assert torch.equal(x.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_input_that_is_not_floating_point_is_refused_as_by_batch_norm(group_of_one, dtype):
    for layer in (nn.BatchNorm2d(3), SyncBatchNorm(3)):
        with pytest.raises(NotImplementedError):
            layer(torch.ones(2, 3, 4, 4, dtype=dtype))


@pytest.mark.parametrize("affine", [True, False])
def test_torch_func_grad(group_of_one, affine):
    """In BatchNorm's place: without running statistics, which it can't move in a transform."""
    layer = SyncBatchNorm(3, affine=affine, track_running_stats=False).double()
    plain = nn.BatchNorm1d(3, affine=affine, track_running_stats=False).double()
    x = torch.randn(5, 3, dtype=torch.float64)

    def loss(x, module, parameters):
        return torch.func.functional_call(module, parameters, (x,)).sin().sum()

    for argnums in (0, (0, 2)) if affine else (0,):
        got, want = (
            torch.func.grad(loss, argnums)(x, module, dict(module.named_parameters()))
            for module in (layer, plain)
        )
        torch.testing.assert_close(got, want)
    got, want = (
        torch.func.grad(lambda x, m=m: torch.func.grad(loss)(x, m, {}).square().sum())(x)
        for m in (layer, plain)
    )
    torch.testing.assert_close(got, want)


def test_scripting_and_symbolic_tracing_say_what_to_do():
    model, _ = convert_norm(net(), "sync_bn")
    with pytest.raises(NotImplementedError, match="script the model before convert_norm"):
        torch.jit.script(model)
    with pytest.raises(NotImplementedError, match="trace the model first"):
        torch.fx.symbolic_trace(model)
    traced, names = convert_norm(torch.fx.symbolic_trace(net()), "sync_bn")
    assert len(names) == 2 and traced(torch.randn(2, 3, 8, 8)).isfinite().all()


def test_layers_have_numbers_by_their_place():
    model, _ = convert_norm(net(), "sync_bn")
    assert [model[1].number, model[2][1].number] == [2, 5]
    convert_norm(model, "bn")
    assert not hasattr(model[1], "number")


# ------------------------------------------------------------------------------------ numerics


def joined(parts):
    return kernels.combine(torch.stack([kernels.local_statistics(part) for part in parts]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("level", [0.0, 1e3, 1e4])
def test_variance_at_a_large_mean(level, channels_last):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, 32, 32, generator=generator, dtype=torch.float64) + level
    x = x.float()
    parts = x.split([3, 6, 7])
    if channels_last:
        parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    _, var, total = joined(parts)
    exact = x.double().var((0, 2, 3), correction=0)
    assert total == 16 * 32 * 32
    limit = 1e-5 if level <= 1e3 else 1e-4
    assert ((var.double() - exact) / exact).abs().max() < limit
    # The sums of x and x² are not up to it: the case is one that tells them apart.
    if level:
        by_moments = (x * x).mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
        assert ((by_moments.double() - exact) / exact).abs().max() > 1e-2


def test_small_deviations_keep_their_precision():
    x = (torch.randn(64, 8, 100, dtype=torch.float64) * 1e-4).float()
    _, var, _ = joined(x.split([1, 63]))
    exact = x.double().var((0, 2), correction=0)
    assert ((var.double() - exact) / exact).abs().max() < 1e-6


def test_counts_above_the_range_of_float16():
    x = torch.randn(2, 1, 70_000).half()
    _, var, total = joined(x.split(1))
    assert total == 140_000
    assert torch.isfinite(var).all()


def test_native_and_plain_kernels_agree(monkeypatch):
    """The plain version is what compiled code and other devices run."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, grad, weight, bias = randn(4, 5, 6, 3), randn(4, 5, 6, 3), randn(5), randn(5)
    mean, var = randn(5), randn(5).square()
    invstd, total, sums = (var + 1e-5).rsqrt(), torch.tensor(150.0).double(), randn(10)

    def everything():
        return (
            kernels.normalise(x, weight, bias, mean, var, invstd, 1e-5),
            kernels.normalise(x, None, None, mean, var, invstd, 1e-5),
            *kernels.gradient_sums(grad, x, weight, mean, var, invstd, 1e-5),
            kernels.input_gradient(grad, x, weight, mean, var, invstd, 1e-5, sums, total),
            kernels.input_gradient(grad, x, None, mean, var, invstd, 1e-5, sums, total),
        )

    native = everything()
    monkeypatch.setattr(kernels, "_native_cpu", lambda x: False)
    for one, other in zip(native, everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


TRITON_ON_CPU = """
import torch
from norm import cpu, fused, kernels
for ranks, channels in ((2, 5), (3, 128), (4, 300)):
    for momentum in (0.1, None):
        for empty in ((), (1,), range(ranks)):
            torch.manual_seed(0)
            rows = torch.rand(ranks, 2 * channels + 1) + 0.5
            rows[:, -1] = torch.randint(1, 50, (ranks,))
            for rank in empty:
                rows[rank] = 0
            args = [(torch.rand(channels), torch.rand(channels), torch.tensor(3)) for _ in "ab"]
            for mine, other in zip(args[0], args[1]):
                other.copy_(mine)
            got = fused.combine_on_gpu(rows, 1e-5, *args[0], momentum)
            want = kernels.combine_and_track(rows, 1e-5, *args[1], momentum)
            for one, two in zip((*got[:3], *args[0]), (*want[:3], *args[1])):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
            assert got[3].dtype == torch.int32 and got[3].sum() == want[3]
    got = fused.combine_on_gpu(rows, 1e-5, None, None, None, 0.1)
    for one, two in zip(got, kernels.combine(rows)[:2]):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    mean, var = torch.rand(2, channels)
    row = fused.pack_on_gpu(mean, var, 2**24 - 1)
    assert torch.equal(row, torch.cat([mean, var, torch.tensor([2.0**24 - 1])]))
one = torch.tensor([0.0, 0.0, 2.0**33])
assert fused.combine_on_gpu(one[None], 1e-5, None, None, None, None)[3].sum() == 2**33
print("agree")
"""


@pytest.mark.parametrize("times", [1, 2**28])
def test_the_calls_of_the_cuda_kernels(monkeypatch, times):
    """torch's CUDA functions, replaced by what they are documented to compute.

    With the other ranks' values, which are this one's ``times`` over, there are 2³¹ and more.
    """

    def view(vector):
        return vector.view(1, -1, 1, 1)

    def elemt(x, weight, bias, mean, invstd, eps):
        return (x - view(mean)) * view(invstd * weight) + view(bias)

    def backward_reduce(grad, x, mean, invstd, weight, *wanted):
        sums_xmu = (grad * (x - view(mean))).sum((0, 2, 3))
        assert wanted == (True, True, True)
        return grad.sum((0, 2, 3)), sums_xmu, sums_xmu * invstd, grad.sum((0, 2, 3))

    def backward_elemt(grad, x, mean, invstd, weight, sums, sums_xmu, count):
        assert count.dtype == torch.int32
        number = count.sum()  # of int32 values, in 64 bits
        slope = view(invstd.square() * sums_xmu / number)
        return (grad - view(sums / number) - (x - view(mean)) * slope) * view(invstd * weight)

    x = torch.randn(3, 5, 4, 4).to(memory_format=torch.channels_last)
    grad, weight, bias = torch.randn(3, 5, 4, 4), torch.rand(5), torch.rand(5)
    results = []
    for as_cuda in (False, True):
        if as_cuda:
            monkeypatch.setattr(kernels, "_native_cuda", lambda x: True)
            monkeypatch.setattr(kernels, "can_launch", lambda device: False)
            for function in (elemt, backward_reduce, backward_elemt):
                monkeypatch.setattr(torch, f"batch_norm_{function.__name__}", function)
        monkeypatch.setattr(kernels, "_native_cpu", lambda x: False)
        row = kernels.local_statistics(x)
        mean, var, total = kernels.combine(row[None])
        invstd = (var + 1e-5).rsqrt()
        y = kernels.normalise(x, weight, bias, mean, var, invstd, 1e-5)
        sums, *parameters = kernels.gradient_sums(grad, x, weight, mean, var, invstd, 1e-5)
        number = kernels._in_parts(total * times) if as_cuda else total * times
        assert number.sum() == 3 * 4 * 4 * times
        everyones = sums * times, number
        dx = kernels.input_gradient(grad, x, weight, mean, var, invstd, 1e-5, *everyones)
        results.append((row, y, *parameters, dx))
    for plain, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, plain, rtol=1e-5, atol=1e-5)


def test_the_mean_of_float16_in_channels_last_3d_is_not_rounded(monkeypatch):
    """As on an H100 with torch 2.11, whose kernel for that layout rounds it to float16."""

    def update_stats(x, *_):
        var, mean = torch.var_mean(x.float(), [0, *range(2, x.dim())], correction=0)
        known = x.is_contiguous() or (
            x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        )
        return mean if known or x.dtype != torch.float16 else mean.half().float(), var

    monkeypatch.setattr(kernels, "_native_cuda", lambda x: True)
    monkeypatch.setattr(kernels, "can_launch", lambda device: False)
    monkeypatch.setattr(torch, "batch_norm_update_stats", update_stats)
    for shape in ((2, 5, 3, 4, 6), (1, 5, 1, 4, 1), (2, 1, 3, 4, 6)):
        x = (torch.randn(shape) + 3).half().contiguous(memory_format=torch.channels_last_3d)
        mean, _, _ = kernels.local_statistics(x).split([shape[1], shape[1], 1])
        torch.testing.assert_close(mean, x.float().mean((0, 2, 3, 4)), rtol=1e-6, atol=0)


def test_a_triton_that_cannot_compile_is_done_without(monkeypatch):
    class Broken:
        def __getitem__(self, grid):
            raise OSError("no C compiler")

    monkeypatch.setattr(fused, "_pack", Broken())
    monkeypatch.setattr(fused, "_works", {})
    with pytest.warns(UserWarning, match="without its Triton kernels.*no C compiler"):
        assert not fused.can_launch(torch.device("cpu"))
    assert not fused.can_launch(torch.device("cpu"))  # and warns once


def test_the_triton_kernels_stay_while_a_graph_is_captured(monkeypatch):
    """They are tried before; while capturing, twenty launches took their place."""
    gpu = torch.device("cuda")
    tried = []
    monkeypatch.setattr(fused, "_works", {})
    monkeypatch.setattr(fused, "_try", lambda device: not tried.append(device))
    monkeypatch.setattr(fused, "triton", object())
    capturing = [True, False, True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing.pop(0))
    assert not fused.can_launch(gpu) and not tried
    assert fused.can_launch(gpu) and fused.can_launch(gpu)
    assert tried == [gpu]


def test_the_triton_kernel_starts_on_the_device_of_its_tensors(monkeypatch):
    devices = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: devices.append("launched")

    @contextmanager
    def device_of(tensor):
        devices.append(tensor.shape)
        yield
        devices.append("back")

    monkeypatch.setattr(fused, "_combine", Kernel())
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    fused.combine_on_gpu(torch.ones(2, 5), 1e-5, None, None, None, 0.1)
    assert devices == [(2, 5), "launched", "back"]


def test_the_benchmark_of_one_gpu_forces_every_path(tmp_path, capsys):
    from benchmarks import syncbn

    options = argparse.Namespace(
        device="cpu", nets=["unet"], rounds=2, steps=1, batch_size=1, processes=1, compile=False
    )
    with syncbn.forced_paths():
        syncbn.measure(0, options, str(tmp_path))
    assert capsys.readouterr().out.count("| unet |") == 4
    assert [syncbn.backend(device) for device in ("cpu", "cuda")] == ["gloo", "nccl"]


def test_the_triton_kernel_in_its_interpreter():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TRITON_ON_CPU], env=environment, capture_output=True, text=True
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 does not work with NumPy 2.4")
    assert "agree" in done.stdout, done.stderr[-3000:]


# ----------------------------------------------------------------------------------- conversion


def test_conversion_and_back_keep_everything():
    model = trained(net())
    layer = model[1]
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.note = "mine"
    layer.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(model)(x)

    same, names = convert_norm(model, "sync_bn")
    assert same is model
    assert names == ["1", "2.1"]
    assert type(model[1]) is SyncBatchNorm
    assert model[1].note == "mine"
    assert not model[1].training
    assert model[2][1].training
    assert {id(p) for p in model.parameters()} == held
    assert list(model.state_dict()) == list(before)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    model(x)
    assert calls

    _, names = convert_norm(model, "bn")
    assert names == ["1", "2.1"]
    assert type(model[1]) is nn.BatchNorm2d
    assert {id(p) for p in model.parameters()} == held
    assert not hasattr(model[1], "group_name")


@pytest.mark.parametrize("kind", ["sync_bn", "group_norm", "frozen_bn"])
def test_hooks_of_every_kind_stay(kind):
    layer, calls = nn.BatchNorm2d(4), []
    layer.register_forward_hook(lambda m, args, kwargs, y: calls.append(1), with_kwargs=True)
    layer.register_forward_pre_hook(lambda m, args, kwargs: calls.append(2), with_kwargs=True)
    layer.register_forward_hook(lambda m, args, y: calls.append(3), always_call=True)
    layer, _ = convert_norm(layer, kind)
    layer(torch.randn(2, 4, 3, 3))
    assert sorted(calls) == [1, 2, 3]
    with pytest.raises(Exception):  # noqa: B017 (of any kind: the input has no shape at all)
        layer(None)
    assert calls.count(3) == 2


@pytest.mark.parametrize("track_running_stats", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_torchs_layer_and_this_one_agree_where_both_run(affine, track_running_stats):
    """Without a group to synchronise in, and in evaluation, torch's layer takes the CPU too."""
    options = {"eps": 1e-3, "affine": affine, "track_running_stats": track_running_stats}
    mine, torchs = SyncBatchNorm(5, **options), nn.SyncBatchNorm(5, **options)
    assert list(mine.state_dict()) == list(torchs.state_dict())
    assert (mine.momentum, mine.training) == (torchs.momentum, torchs.training)
    for shape in ((6, 5), (3, 5, 7), (3, 5, 4, 4), (2, 5, 3, 4, 4)):
        x = torch.randn(shape)
        for training in (True, False):
            got, wanted = mine.train(training)(x), torchs.train(training)(x)
            assert torch.equal(got, wanted)
        for name, value in torchs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    for layer in (mine, torchs):
        with pytest.raises(ValueError, match=r"1D|1 dim"):
            layer(torch.randn(5))


def test_torchs_own_layer_there_and_back():
    model, names = convert_norm(net(), "sync_bn", impl="torch")
    assert names == ["1", "2.1"]
    assert type(model[1]) is nn.SyncBatchNorm
    convert_norm(model, "sync_bn", impl="own")
    assert type(model[1]) is SyncBatchNorm
    convert_norm(model, "bn")
    assert type(model[1]) is nn.BatchNorm2d
    # Converted by torch: what it was is not known, so it takes any number of dimensions.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    convert_norm(model, "bn")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), net_with(model)(x))
    assert not isinstance(model[1], nn.SyncBatchNorm)


def net_with(model):
    plain = net()
    plain.load_state_dict(model.state_dict())
    return plain.eval()


@pytest.mark.parametrize("kind", ["sync_bn", "group_norm", "frozen_bn"])
def test_a_module_under_two_names_stays_one(kind):
    shared = nn.BatchNorm2d(8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    _, names = convert_norm(model, kind)
    assert names == ["a"]
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is not nn.BatchNorm2d


@pytest.mark.parametrize("kind", ["sync_bn", "group_norm", "frozen_bn"])
def test_a_model_that_is_one_layer(kind):
    model, names = convert_norm(nn.BatchNorm2d(8), kind)
    assert names == [""]
    assert type(model) is not nn.BatchNorm2d


@pytest.mark.parametrize("kind", ["sync_bn", "bn", "group_norm", "frozen_bn"])
def test_timm_layers_keep_their_activation(kind):
    norm_act = pytest.importorskip("timm.layers.norm_act")
    model = nn.Sequential(norm_act.BatchNormAct2d(8, act_layer=nn.LeakyReLU))
    trained(model, (4, 8, 5, 5))
    plain = copy.deepcopy(model)
    if kind == "bn":
        convert_norm(model, "sync_bn")
    convert_norm(model, kind)
    x = torch.randn(2, 8, 5, 5)
    assert isinstance(model[0].act, nn.LeakyReLU)
    if kind == "group_norm":
        expected = nn.functional.leaky_relu(nn.functional.group_norm(x, 4))
    else:
        expected = plain.eval()(x)
    torch.testing.assert_close(model.eval()(x), expected)
    assert model.train()(x).min() < 0
    if kind == "bn":
        assert type(model[0]) is norm_act.BatchNormAct2d


@pytest.mark.parametrize("impl", ["own", "torch"])
def test_a_timm_model(impl):
    timm = pytest.importorskip("timm")
    model = timm.create_model("regnetx_002", pretrained=False)
    expected = copy.deepcopy(model).eval()
    _, names = convert_norm(model, "sync_bn", impl=impl)
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in expected.modules())
    assert len(names) == layers
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), expected(x))
    convert_norm(model, "bn")
    assert [type(m) for m in model.modules()] == [type(m) for m in expected.modules()]


def test_freezing_and_thawing():
    model = trained(net())
    x = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(model).eval()(x)
    state = copy.deepcopy(model.state_dict())
    _, names = convert_norm(model, "frozen_bn")
    assert names == ["1", "2.1"]
    assert isinstance(model[1], FrozenBatchNorm)
    assert len(list(model.parameters())) == 2  # the convolution's
    torch.testing.assert_close(model.train()(x), expected)
    model.load_state_dict(state)  # a BatchNorm checkpoint loads
    convert_norm(model, "sync_bn")
    assert type(model[1]) is SyncBatchNorm
    assert model[1].training
    assert len(list(model.parameters())) == 6
    torch.testing.assert_close(model.eval()(x), expected)
    convert_norm(model, "bn")
    assert type(model[1]) is nn.BatchNorm2d


def test_freezing_keeps_what_training_needs_again():
    layer = nn.BatchNorm2d(4, momentum=0.01, eps=1e-3)
    frozen, _ = convert_norm(layer, "frozen_bn")
    thawed, _ = convert_norm(frozen, "bn")
    assert (thawed.momentum, thawed.eps) == (0.01, 1e-3)
    layer = nn.BatchNorm2d(4)
    layer.bias = None  # as BatchNorm2d(bias=False) of newer torch
    thawed, _ = convert_norm(convert_norm(layer, "frozen_bn")[0], "bn")
    assert thawed.bias is None and thawed(torch.randn(2, 4, 3, 3)).isfinite().all()


def test_torchvisions_frozen_layers_are_replaced():
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8))
    model[1].running_mean.normal_()
    model[1].weight.uniform_()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    _, names = convert_norm(model, "sync_bn")
    assert names == ["1"]
    assert type(model[1]) is SyncBatchNorm
    assert model[1].weight.requires_grad
    torch.testing.assert_close(model.eval()(x), expected)


def test_group_norm():
    model = nn.Sequential(nn.BatchNorm2d(64), nn.BatchNorm2d(24, affine=False), nn.BatchNorm1d(4))
    weight = model[0].weight
    convert_norm(model, "group_norm")
    assert [layer.num_groups for layer in model] == [32, 8, 2]
    assert model[0].weight is weight
    assert model[1].weight is None
    x = torch.randn(2, 64, 5, 5)
    torch.testing.assert_close(model[0](x), nn.functional.group_norm(x, 32))


def test_channels_that_do_not_divide():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(7))
    with pytest.raises(NormError, match="Layer 1 has 7 channels"):
        convert_norm(model, "group_norm")
    assert type(model[0]) is nn.BatchNorm2d  # all or none


@pytest.mark.parametrize("kind", ["sync_bn", "bn", "group_norm", "frozen_bn"])
def test_nothing_to_convert_is_an_error(kind):
    with pytest.raises(NormError, match="There is nothing to convert"):
        convert_norm(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), kind)


def test_a_model_of_that_kind_already_is_no_error():
    assert convert_norm(net(), "bn")[1] == []
    model, _ = convert_norm(net(), "sync_bn")
    assert convert_norm(model, "sync_bn")[1] == []


def test_unknown_subclasses_are_left_with_a_warning():
    class Special(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.BatchNorm2d(3), Special(3))
    with pytest.warns(UserWarning, match="1 \\(Special\\)"):
        _, names = convert_norm(model, "sync_bn")
    assert names == ["0"]
    assert type(model[1]) is Special
    with pytest.warns(UserWarning), pytest.raises(NormError, match="run one batch"):
        convert_norm(nn.Sequential(nn.LazyBatchNorm2d()), "sync_bn")


def test_mistakes_are_named():
    with pytest.raises(NormError, match=r"^kind must be one of .*, got 'layer_norm'\.$"):
        convert_norm(net(), "layer_norm")
    with pytest.raises(NormError, match=r"^impl must be own or torch, got 'apex'\.$"):
        convert_norm(net(), "sync_bn", impl="apex")
    with pytest.raises(NormError, match="before wrapping"):
        convert_norm(nn.DataParallel(net()), "sync_bn")
    with pytest.raises(NormError, match="group_size needs several processes"):
        convert_norm(net(), "sync_bn", group_size=2)
    with pytest.raises(NormError, match="group_size needs impl 'own'"):
        convert_norm(net(), "sync_bn", group_size=2, impl="torch")
    with pytest.raises(NormError, match="nothing to freeze"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "frozen_bn")


def test_export_after_reverting():
    model, _ = convert_norm(trained(net()), "sync_bn")
    convert_norm(model, "bn")
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


# --------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("processes", "batch", "kind", "says"),
    [
        (1, 32, "bn", "nothing to synchronise"),
        (1, 2, "bn", "group_norm"),
        (2, 2, "sync_bn", "all 2 processes"),
        (8, 8, "sync_bn", "8 per process"),
        (8, 9, "bn", "large enough"),
    ],
)
def test_auto(processes, batch, kind, says):
    choice = choose_norm("auto", net(), processes, batch)
    assert choice.kind == kind
    assert says in choice.reason
    assert choice.reason.count(". ") == 0
    assert choice.reason.endswith(".")


def test_auto_leaves_other_normalisation_alone():
    from torchvision.ops import FrozenBatchNorm2d

    for layer, says in (
        (nn.GroupNorm(2, 4), "does not depend"),
        (nn.LayerNorm(4), "does not depend"),
        (FrozenBatchNorm2d(4), "frozen"),
        (nn.Linear(4, 4), "no BatchNorm"),
        (SyncBatchNorm(4), "already"),
    ):
        choice = choose_norm("auto", nn.Sequential(layer), 4, 2)
        assert choice.kind == "none"
        assert says in choice.reason


def test_auto_leaves_unknown_classes_alone():
    class Other(nn.BatchNorm2d):
        pass

    choice = choose_norm("auto", nn.Sequential(Other(4)), 2, 2)
    assert choice.kind == "none" and "unknown" in choice.reason


def test_what_is_asked_for_is_chosen():
    assert choose_norm("bn", net(), 4, 2).kind == "bn"
    assert choose_norm("group_norm", net(), 1, 2).kind == "group_norm"
    assert choose_norm("sync_bn", net(), 4, 64).kind == "sync_bn"
    choice = choose_norm("sync_bn", net(), 1, 2)
    assert choice.kind == "bn"
    assert "one process" in choice.reason
    with pytest.raises(NormError, match="batchnorm"):
        choose_norm("batchnorm", net(), 1, 2)


# -------------------------------------------------------------------------- running statistics


def test_precise_bn_counts_every_value_alike():
    torch.manual_seed(0)
    model = net().double()
    batches = [torch.randn(n, 3, 8, 8, dtype=torch.float64) + n for n in (1, 5, 2, 9)]
    frozen = model[2][1].eval()
    weights = copy.deepcopy(list(model.parameters()))
    before = copy.deepcopy(frozen.state_dict())
    precise_bn(model, batches, 3, forward=lambda model, x: model(x))
    values = torch.cat([model[0](x) for x in batches[:3]])
    torch.testing.assert_close(model[1].running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, values.var((0, 2, 3)))
    assert model[1].num_batches_tracked == 0
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(map(torch.equal, frozen.state_dict().values(), before.values()))


def test_precise_bn_that_fails_changes_nothing():
    model = trained(net())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="got 1"):
        precise_bn(model, [torch.randn(2, 3, 8, 8)], 2)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    with pytest.raises(ValueError, match="training mode"):
        precise_bn(model.eval(), [], 2)


@pytest.fixture
def says():
    """The warnings of a call, as in a new process."""

    def call(function) -> list[str]:
        norm_layer._warn_once.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
        return [str(warning.message) for warning in caught if "SyncBatch" in str(warning.message)]

    yield call
    norm_layer._warn_once.cache_clear()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_evaluating_in_training_mode_warns_once(says, off):
    model, _ = convert_norm(net(), "sync_bn", impl="own")
    x = torch.randn(2, 3, 8, 8)

    def evaluate():
        with off():
            model(x), model(x)

    (warning,) = says(evaluate)
    assert "model.eval()" in warning
    model.eval()
    assert says(evaluate) == []


def test_training_forwards_that_need_no_gradient_do_not_warn(says):
    model, _ = convert_norm(net(), "sync_bn", impl="own")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert says(lambda: model(x)) == []
    assert says(lambda: precise_bn(model, [x, x], 2)) == []
    assert says(lambda: torch.optim.swa_utils.update_bn([x], model)) == []
    assert says(lambda: checkpoint(model, x, use_reentrant=True).sum().backward()) == []


def test_averaging_in_one_process_changes_nothing():
    model = trained(net())
    before = copy.deepcopy(model.state_dict())
    average_running_stats(model)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_disagreement_in_one_process_is_zero():
    model = net()
    with rank_disagreement(model) as probe:
        model(torch.randn(2, 3, 8, 8))
    assert probe.result.share == 0
    assert set(probe.result.layers) == {"1", "2.1"}
    with rank_disagreement(nn.Linear(2, 2)) as probe:
        pass
    assert probe.result.share == 0


def test_data_parallel_is_refused():
    # What torch.nn.DataParallel makes of the layer on each of several GPUs.
    layer = SyncBatchNorm(3)
    replica = layer._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="DataParallel's replicas share no statistics"):
        replica(torch.randn(2, 3))


def test_a_wrapped_model_is_refused():
    with pytest.raises(NormError, match="wrapped in DataParallel already"):
        convert_norm(nn.DataParallel(net()), "sync_bn")


@pytest.mark.parametrize("shape", [(16, 8, 32, 32), (3, 5, 4, 30, 30), (2, 7, 2, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("level", [0.0, 10.0, 1e4])
def test_channels_last_statistics_keep_the_precision(shape, level, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) + level).float()
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    taken = kernels.local_statistics(x.contiguous(memory_format=layout))
    monkeypatch.setattr(cpu, "channels_last_statistics", lambda x: None)
    plain = kernels.local_statistics(x)
    assert taken.dtype == plain.dtype and taken.shape == plain.shape
    assert torch.allclose(taken, plain, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("numbers", [(50, 50), (3, 0, 7), (0, 0), (1,)])
def test_the_cpu_s_combination_has_the_plain_one_s_bits(numbers, momentum, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(len(numbers), 33, generator=generator)
    rows[:, -1] = torch.tensor(numbers)

    def combined():
        running = [torch.zeros(16), torch.ones(16, dtype=torch.float64), torch.tensor(4)]
        return [*kernels.combine_and_track(rows, 1e-5, *running, momentum), *running]

    quick = combined()
    monkeypatch.setattr(cpu, "are_plain", lambda rows: False)
    for mine, plain in zip(quick, combined(), strict=True):
        assert torch.equal(mine, plain) and mine.dtype == plain.dtype
