"""The lesson on data parallelism: k devices equal one, and the all-reduces equal a sum."""

import gzip
import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
lesson = importlib.import_module("data_parallel_from_scratch")
digits = importlib.import_module("digits")

HOWS = ["sum_on_first", "shared"]


def cpus(count):
    return [torch.device("cpu")] * count


def batch(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 28, 28, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (count,), generator=generator)


def reference(params):
    """The same network of torch's own modules, with the same weights."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 20, 3), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 10)),
    ).double()
    net.load_state_dict(dict(zip(net.state_dict(), params, strict=True)))
    return net


# Equality with one device


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_k_devices_train_as_one_network_does(devices, how):
    params = lesson.get_params(dtype=torch.float64)
    net = reference(params)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    replicas, links = lesson.replicate(params, cpus(devices)), lesson.Links(cpus(devices))
    for step in range(3):
        images, labels = batch(10, step)  # 3 and 4 do not divide it
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours = lesson.train_batch(images, labels, replicas, links, 0.2, how)
        assert ours == pytest.approx(loss.item(), rel=1e-10)
    for replica in replicas:
        for param, expected in zip(replica, net.parameters(), strict=True):
            torch.testing.assert_close(param, expected, rtol=1e-10, atol=1e-10)
    for replica in replicas[1:]:
        assert all(map(torch.equal, replica, replicas[0])), "replicas drift apart"


@pytest.mark.parametrize("how", HOWS)
def test_fewer_samples_than_devices(how):
    params = lesson.get_params(dtype=torch.float64)
    results = []
    for devices in (1, 3):
        replicas, links = lesson.replicate(params, cpus(devices)), lesson.Links(cpus(devices))
        loss = lesson.train_batch(*batch(2), replicas, links, 0.2, how)
        results.append((loss, replicas[-1]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-10)


def test_replicas_share_no_memory():
    params = lesson.get_params()
    tensors = itertools.chain(params, *lesson.replicate(params, cpus(2)))
    assert len({tensor.data_ptr() for tensor in tensors}) == 24


def test_accuracy_is_that_of_all_replicas_on_all_samples():
    params = lesson.get_params(dtype=torch.float64)
    images, labels = batch(11)
    expected = (reference(params)(images).argmax(1) == labels).double().mean().item()
    labels = reference(params)(images).argmax(1)  # so that every answer of a sound replica is right
    for devices in (1, 2, 3):
        replicas = lesson.replicate(params, cpus(devices))
        assert lesson.accuracy(images, labels, replicas, cpus(devices)) == 1
        assert lesson.accuracy(*batch(11), replicas, cpus(devices)) == expected
        with torch.no_grad():  # a replica that is wrong everywhere costs its own share
            replicas[-1][-1][:] = torch.where(torch.arange(10) == (labels[-1] + 1) % 10, 1e9, -1e9)
        share = images.tensor_split(devices)[-1]
        wrong = (labels[-len(share) :] != (labels[-1] + 1) % 10).sum().item()
        score = lesson.accuracy(images, labels, replicas, cpus(devices))
        assert score == pytest.approx(1 - wrong / 11)


# The all-reduce


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_allreduce_is_the_sum_everywhere(devices, how):
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (1,)]
    grads = [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(devices)]
    sums = [torch.stack(tensors).sum(0) for tensors in zip(*grads, strict=True)]
    lesson.allreduce(grads, lesson.Links(cpus(devices)), how)
    for own in grads:
        torch.testing.assert_close(own, sums, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_bytes_moved(devices):
    size = 8 * 120  # of 120 float64, which 2, 3 and 4 divide
    moved = {}
    for how in HOWS:
        moved[how] = lesson.Links(cpus(devices))
        grads = [[torch.ones(100).double(), torch.ones(20).double()] for _ in range(devices)]
        lesson.allreduce(grads, moved[how], how)
        assert sum(moved[how].received) == moved[how].total == 2 * (devices - 1) * size
    assert moved["sum_on_first"].busiest == 2 * (devices - 1) * size
    assert moved["shared"].busiest == 4 * size * (devices - 1) / devices


# Data


def test_digits_are_a_function_of_the_seed():
    images, labels = digits.draw_digits(300, seed=3)
    assert images.shape == (300, 1, 28, 28) and labels.unique().tolist() == list(range(10))
    again = digits.draw_digits(300, seed=3)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(images, digits.draw_digits(300, seed=4)[0])


def write_idx(path, tensor):
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    content = bytes([0, 0, 8, tensor.dim()]) + sizes + tensor.numpy().tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def files(tmp_path):
    """Files named as FashionMNIST's, of drawn digits."""
    for split, count in {"train": 40, "t10k": 20}.items():
        images, labels = digits.draw_digits(count, seed=count)
        pixels = (255 * images[:, 0].clamp(0, 1)).byte()
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", pixels)
        write_idx(tmp_path / f"FashionMNIST/raw/{split}-labels-idx1-ubyte", labels.byte())
    return tmp_path


def test_idx_files_gzipped_or_not(files):
    images, labels = digits.read_split(files, "train")
    expected, truth = digits.draw_digits(40, seed=40)
    torch.testing.assert_close(images, expected.clamp(0, 1), rtol=0, atol=1 / 255)
    assert torch.equal(labels, truth)


def test_bad_files_are_named(files):
    labels = files / "FashionMNIST/raw/train-labels-idx1-ubyte"
    write_idx(labels, torch.full((40,), 10, dtype=torch.uint8))
    with pytest.raises(UserError, match="from 0 to 9"):
        digits.read_split(files, "train")
    write_idx(labels, torch.zeros(39, dtype=torch.uint8))
    with pytest.raises(UserError, match="39 labels"):
        digits.read_split(files, "train")
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"labels-idx1-ubyte is not a complete"):
        digits.read_split(files, "train")
    images = files / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"images-idx3-ubyte\.gz can't be read"):
        digits.read_split(files, "train")
    images.unlink()
    with pytest.raises(UserError, match="neither train-images"):
        digits.read_split(files, "train")


# The command


def test_two_devices_learn_what_one_does(files, capsys):
    # Few images, but of two digits only, which are soon told apart.
    for split, count in {"train": 1024, "t10k": 256}.items():
        images, labels = digits.draw_digits(count, seed=count)
        kept = labels < 2
        pixels = (255 * images[kept, 0].clamp(0, 1)).byte()
        write_idx(files / f"{split}-images-idx3-ubyte", pixels)
        write_idx(files / f"{split}-labels-idx1-ubyte", labels[kept].byte())
    common = ["--data_dir", str(files), "--epochs", "6", "--batch_size", "32"]
    one = lesson.main(lesson.read_options([*common, "--devices", "cpu"]))
    two = lesson.main(
        lesson.read_options([*common, "--devices", "cpu", "cpu", "--allreduce", "shared"])
    )
    assert one > 0.8 and two == pytest.approx(one, abs=0.04)
    output = capsys.readouterr().out
    assert output.count("epoch 6") == 2 and "through the busiest device" in output


def test_batch_and_rate_scale_with_the_devices(files, capsys, monkeypatch):
    seen = []
    train_batch = lesson.train_batch

    def spy(images, labels, replicas, links, lr, how):
        seen.append((len(images), lr))
        return train_batch(images, labels, replicas, links, lr, how)

    monkeypatch.setattr(lesson, "train_batch", spy)
    common = ["--data_dir", str(files), "--epochs", "1", "--batch_size", "10", "--lr", "0.01"]
    common += ["--devices", "cpu", "cpu"]
    lesson.main(lesson.read_options(common))
    assert seen == [(10, pytest.approx(rate)) for rate in (0.01, 0.0075, 0.005, 0.0025)]
    seen.clear()
    lesson.main(lesson.read_options([*common, "--scale_batch"]))
    assert seen == [(20, pytest.approx(rate)) for rate in (0.01, 0.005)]
    seen.clear()
    lesson.main(lesson.read_options([*common, "--scale_batch", "--scale_lr"]))
    assert seen == [(20, pytest.approx(rate)) for rate in (0.02, 0.01)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "cpu", "gpu7"], "gpu7"),
        (["--devices", "cuda:999"], "cuda:999"),
        (["--scale_lr"], "--scale_batch"),
        (["--batch_size", "0"], "above 0"),
        (["--lr", "nan"], "finite"),
        (["--lr", "inf"], "finite"),
        (["--data_dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        lesson.main(lesson.read_options(arguments))


def run(*arguments):
    command = [sys.executable, "-X", "importtime", EXAMPLES / "data_parallel_from_scratch.py"]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_help_does_not_wait_for_torch():
    done = run("--help")
    assert done.returncode == 0 and "--allreduce" in done.stdout
    assert " torch" not in done.stderr


def test_a_mistake_ends_with_one_sentence():
    done = run("--devices", "cpu", "gpu7")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: --devices names gpu7")
    assert "Traceback" not in done.stderr
