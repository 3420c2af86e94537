"""CudaMultiGPU: without a GPU, and with a stand-in for DataParallel on several."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gpu_utils
from gpu_utils import CudaMultiGPU, batch_size_hint, recommended_num_workers, usable_cores
from norm import convert_norm

FILE = Path(gpu_utils.__file__)


class Net(nn.Module):
    """Remembers the GPUs it was sent to, and stays on the CPU."""

    def __init__(self, norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, 4, 3), *([norm(4)] if norm else [])]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        self.sent_to = []
        self.calls = 0

    def to(self, *args, **kwargs):
        if "cuda" not in str(args[:1]):
            return super().to(*args, **kwargs)
        self.sent_to.append(str(args[0]))
        return self

    def forward(self, x, *, double=False):
        self.calls += 1
        return self.body(x) * (2 if double else 1)

    def loss(self, x):
        return self(x).square().mean()


class Loss(Net):
    def forward(self, x):
        return super().forward(x).square().mean()


class StandIn(nn.DataParallel):
    """DataParallel's own forward, with the steps that need GPUs done on the CPU."""

    def __init__(self, module, device_ids):
        nn.Module.__init__(self)
        self.module, self.device_ids, self.dim = module, device_ids, 0
        self.output_device, self.src_device_obj = device_ids[0], torch.device("cpu")
        self.shares = []

    def scatter(self, inputs, kwargs, device_ids):
        parts = [(part,) for part in inputs[0].chunk(len(device_ids))]
        self.shares = [len(part[0]) for part in parts]
        return parts, [kwargs] * len(parts)

    def replicate(self, module, device_ids):
        return [module] * len(device_ids)

    def parallel_apply(self, replicas, inputs, kwargs):
        return [net(*a, **b) for net, a, b in zip(replicas, inputs, kwargs, strict=True)]

    def gather(self, outputs, output_device):
        return torch.cat([output.reshape(-1, *output.shape[1:]) for output in outputs])


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch report a number of GPUs; none at first."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(nn, "DataParallel", StandIn)

    pretend(0)
    return pretend


def images(count=5):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# Devices


def test_without_gpu_it_is_the_model_on_the_cpu(gpus):
    net = Net(nn.BatchNorm2d)
    model = CudaMultiGPU(net)
    assert model.device == torch.device("cpu") and model.device_ids == []
    assert model.model is net
    torch.testing.assert_close(model(images()), net(images()), rtol=0, atol=0)
    assert "cpu" in repr(model)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_gpus_share_the_batch(gpus, count):
    gpus(count)
    net = Net()
    model = CudaMultiGPU(net)
    assert model.device == torch.device("cuda:0") and net.sent_to == ["cuda:0"]
    assert model.device_ids == list(range(count))
    torch.testing.assert_close(model(images(), double=True), 2 * net.body(images()))
    assert net.calls == count
    assert sum(model._run.shares) == 5 and len(model._run.shares) == count


def test_chosen_devices(gpus):
    gpus(4)
    model = CudaMultiGPU(Net(), device_ids=[2, "cuda:1", torch.device("cuda", 3)])
    assert model.device_ids == [2, 1, 3] and model.device == torch.device("cuda:2")
    assert CudaMultiGPU(Net(), device_ids=[]).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("ids", "words"),
    [([2], "none of the 2"), ([-1], "-1"), (["cpu"], "cpu"), ([0, "cuda:0"], "twice")],
)
def test_wrong_devices_are_refused(gpus, ids, words):
    gpus(2)
    with pytest.raises(ValueError, match=words):
        CudaMultiGPU(Net(), device_ids=ids)


def test_anything_but_a_bare_module_is_refused(gpus):
    gpus(2)
    with pytest.raises(TypeError, match=r"\.module"):
        CudaMultiGPU(StandIn(Net(), [0, 1]))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        CudaMultiGPU(CudaMultiGPU(Net()))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        CudaMultiGPU(Net)


def test_mean_of_losses_is_the_loss_and_its_gradient(gpus):
    one, two = Loss(), Loss()
    two.load_state_dict(one.state_dict())
    loss = CudaMultiGPU(one)(images(6)).mean()
    loss.backward()
    gpus(2)
    model = CudaMultiGPU(two)
    losses = model(images(6))
    assert losses.shape == (2,)
    losses.mean().backward()
    torch.testing.assert_close(losses.mean(), loss)
    for a, b in zip(one.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# The model's interface


@pytest.mark.parametrize("count", [0, 1, 2])
def test_names_are_those_of_the_model(gpus, count):
    gpus(count)
    net = Net()
    model = CudaMultiGPU(net)
    assert list(model.state_dict()) == list(net.state_dict())
    assert [name for name, _ in model.named_parameters()] == [n for n, _ in net.named_parameters()]
    other = Net()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(net.body[0].weight, other.body[0].weight)


@pytest.mark.parametrize("count", [0, 2])
def test_all_other_attributes_are_those_of_the_model(gpus, count):
    gpus(count)
    net = Net()
    model = CudaMultiGPU(net)
    assert model.body is net.body
    torch.testing.assert_close(model.loss(images()), net.loss(images()))
    assert model.eval() is model and not net.training and not model.training
    assert model.train() is model and net.training
    assert model.double() is model and net.body[0].weight.dtype == torch.float64
    assert model.requires_grad_(False) is model and not net.body[0].weight.requires_grad
    model.temperature = 3
    assert net.temperature == 3 and model.temperature == 3
    del model.temperature
    assert not hasattr(net, "temperature") and not hasattr(model, "temperature")
    assert {"loss", "device", "state_dict"} <= set(dir(model))


@pytest.mark.parametrize("count", [0, 2])
def test_layers_of_a_sequence_are_reached(gpus, count):
    gpus(count)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    net.to = lambda *_: net
    model = CudaMultiGPU(net)
    assert len(model) == 2 and model[1] is net[1] and list(model) == list(net) and model
    assert net[0] in model and model[:1][0] is net[0]
    assert CudaMultiGPU(Net())  # true, although it has no length
    with pytest.raises(TypeError, match="Net"):
        CudaMultiGPU(Net())[0]


@pytest.mark.parametrize("count", [0, 2])
def test_moving_to_another_device_is_refused(gpus, count):
    gpus(count)
    net = Net()
    model = CudaMultiGPU(net)
    before = copy.deepcopy(net.state_dict())
    for move in (lambda: model.to("meta"), lambda: model.to_empty(device="meta")):
        with pytest.raises(ValueError, match="move the model from cpu to meta: wrap it anew"):
            move()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.to(torch.float64).to("cpu").cpu() is model
    assert net.body[0].weight.dtype == torch.float64
    assert model.to(memory_format=torch.channels_last) is model


@pytest.mark.parametrize("name", ["model", "device", "device_ids"])
def test_own_attributes_are_fixed(gpus, name):
    model = CudaMultiGPU(Net())
    with pytest.raises(AttributeError, match=name):
        setattr(model, name, None)
    with pytest.raises(AttributeError, match=name):
        delattr(model, name)


def test_training_changes_the_model(gpus):
    gpus(2)
    net = Net()
    model = CudaMultiGPU(net)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images()).square().mean().backward()
    optimizer.step()
    assert any((before[name] != value).any() for name, value in net.state_dict().items())


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_copies_stand_alone(gpus, count, how):
    gpus(count)
    model = CudaMultiGPU(Net())
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert isinstance(twin, CudaMultiGPU) and twin.device_ids == model.device_ids
    torch.testing.assert_close(twin(images()), model(images()))
    with torch.no_grad():
        twin.body[0].weight.zero_()
    assert model.body[0].weight.any()


def test_a_copy_uses_the_gpus_it_finds(gpus):
    gpus(2)
    content = pickle.dumps(CudaMultiGPU(Net()))
    gpus(0)
    assert pickle.loads(content).device == torch.device("cpu")


# Normalisation


def test_batch_norm_on_several_gpus_warns_once(gpus):
    gpus(2)
    with pytest.warns(UserWarning, match="own part of the batch") as caught:
        model = CudaMultiGPU(Net(nn.BatchNorm2d))
        model(images())
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("count", [0, 1])
def test_batch_norm_on_one_device_does_not_warn(gpus, count):
    gpus(count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CudaMultiGPU(Net(nn.BatchNorm2d))
        gpus(2)
        CudaMultiGPU(Net())
        CudaMultiGPU(Net(lambda channels: nn.GroupNorm(1, channels)))


def test_sync_batch_norm_on_several_gpus_is_refused(gpus):
    own, _ = convert_norm(Net(nn.BatchNorm2d), "sync_bn", impl="own")
    for net in (Net(nn.SyncBatchNorm), own):
        gpus(2)
        with pytest.raises(ValueError, match="never synchronises"):
            CudaMultiGPU(net)
        gpus(1)
        CudaMultiGPU(net)


# Numbers


def test_workers_are_cores_per_gpu(gpus, monkeypatch):
    monkeypatch.setattr(gpu_utils, "usable_cores", lambda: 12)
    assert recommended_num_workers() == 12
    gpus(4)
    assert recommended_num_workers() == 3
    assert recommended_num_workers(1) == 12
    assert recommended_num_workers(16) == 1
    with pytest.raises(ValueError, match="at least 1"):
        recommended_num_workers(0)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_cores_are_those_of_the_process_and_its_container(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores(str(tmp_path)) == expected
    assert usable_cores(str(tmp_path / "none")) == 8


def test_cores_where_there_is_no_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(str(tmp_path)) == 6


@pytest.mark.parametrize(
    ("asked", "gpu_count", "least", "size", "words"),
    [
        (64, 4, 16, 64, "fine: 16 on each of 4 GPUs"),
        (33, 2, 16, 34, "evenly over 2 GPUs, 17"),
        (8, 2, 16, 32, "SyncBatchNorm"),
        (3, 2, 1, 4, "evenly"),
        (16, 1, 16, 16, "each of 1 GPU."),
        (4, None, 16, 48, "rather than 4"),
    ],
)
def test_batch_size_hint(gpus, asked, gpu_count, least, size, words):
    gpus(3)
    answer, sentence = batch_size_hint(asked, gpu_count, least)
    assert answer == size and words in sentence and sentence.endswith(".")


def test_batch_size_hint_refuses_less_than_one(gpus):
    with pytest.raises(ValueError, match="at least 1"):
        batch_size_hint(0)


def test_the_file_stands_alone(tmp_path):
    shutil.copy(FILE, tmp_path)
    program = (
        "import sys, torch, gpu_utils\n"
        "model = gpu_utils.CudaMultiGPU(torch.nn.Linear(2, 1))\n"
        "print(model(torch.ones(3, 2)).shape, gpu_utils.recommended_num_workers() > 0)\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([3, 1]) True" in done.stdout
    modules = done.stdout.split()
    assert "gpu_utils" in modules
    assert not {"accelerate", "engine", "models", "data", "errors"} & set(modules)
