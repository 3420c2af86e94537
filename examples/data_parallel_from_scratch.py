"""Data parallelism written out: several devices train one LeNet, with nothing hidden.

    python examples/data_parallel_from_scratch.py           all GPUs, or the CPU as two devices
    python examples/data_parallel_from_scratch.py --devices cpu cpu cpu
    python examples/data_parallel_from_scratch.py --devices cuda:0 cuda:1 --allreduce shared
    python examples/data_parallel_from_scratch.py --data_dir fashion_mnist

Read it from top to bottom. Every device holds a replica of the parameters and gets a share of the
batch. It computes the gradient of its share. The gradients are summed over the devices, and each
device takes the same step, so the replicas stay equal. That is all.

With --devices cpu cpu, one CPU acts as two devices: each has its own replica and share, and tensors
are copied between them as between two GPUs. They take turns, so nothing gets faster. On GPUs the
work of all devices is queued first and runs at the same time.

The images are digits as a seven-segment display shows them (digits.py) or, with --data_dir, those
of FashionMNIST or MNIST. The script has not been run on GPUs.
"""
# ruff: noqa: E402

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--devices",
        nargs="+",
        help="such as cuda:0 cuda:1, or cpu cpu; default: all GPUs, else cpu cpu",
    )
    add("--allreduce", choices=("sum_on_first", "shared"), default="sum_on_first")
    add("--epochs", type=int, default=6)
    add("--batch_size", type=int, default=256, help="of all devices together")
    add("--lr", type=float, default=0.2, help="at the start; it falls linearly to 0")
    add("--scale_batch", action="store_true", help="use a batch of this size on every device")
    add("--scale_lr", action="store_true", help="multiply the rate by the number of devices too")
    add(
        "--data_dir",
        help="folder with the idx files of FashionMNIST or MNIST",
    )
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = read_options()  # before torch is imported: --help answers at once

import torch
from digits import draw_digits, read_split
from torch import Tensor
from torch.nn import functional as F

# 1. One device: LeNet and its loss
#
# The network is a function of its parameters, and the parameters are a list of tensors. A replica
# is simply another list.


def get_params(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """LeNet's parameters, a weight and a bias per layer, on the CPU.

    Weights are normal with variance 2 / inputs (https://arxiv.org/abs/1502.01852), biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in ((20, 1, 3, 3), (50, 20, 5, 5), (128, 800), (10, 128)):
        scale = math.sqrt(2 / math.prod(shape[1:]))
        params += [scale * torch.randn(shape, generator=generator, dtype=dtype)]
        params += [torch.zeros(shape[0], dtype=dtype)]
    return params


def lenet(images: Tensor, params: list[Tensor]) -> Tensor:
    """Images (B, 1, 28, 28) → logits (B, 10)."""
    conv1, bias1, conv2, bias2, hidden, bias3, out, bias4 = params
    x = F.avg_pool2d(F.conv2d(images, conv1, bias1).relu(), 2)  # (B, 20, 13, 13)
    x = F.avg_pool2d(F.conv2d(x, conv2, bias2).relu(), 2)  # (B, 50, 4, 4)
    x = F.linear(x.flatten(1), hidden, bias3).relu()  # (B, 128)
    return F.linear(x, out, bias4)


# 2. Several devices: replicas and shares


def replicate(params: list[Tensor], devices: list[torch.device]) -> list[list[Tensor]]:
    """A copy of the parameters for every device."""
    return [
        [param.to(device, copy=True).requires_grad_() for param in params] for device in devices
    ]


def split_batch(
    images: Tensor, labels: Tensor, devices: list[torch.device]
) -> list[tuple[Tensor, Tensor]]:
    """A share of the batch for every device; the first get one sample more if it isn't even."""
    shares = zip(images.tensor_split(len(devices)), labels.tensor_split(len(devices)), strict=True)
    return [(x.to(device), y.to(device)) for device, (x, y) in zip(devices, shares, strict=True)]


# 3. The all-reduce
#
# After it every device holds the sum of what all devices held before. Everything that goes from one
# device to another goes through Links, which counts the bytes.


class Links:
    """The wires between the devices, with a meter at both ends.

    Attributes:
        sent: bytes that each device sent.
        received: bytes that each device received.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        self.devices = devices
        self.sent = [0] * len(devices)
        self.received = [0] * len(devices)

    def copy(self, tensor: Tensor, source: int, target: int) -> Tensor:
        """A copy, on device number ``target``, of a tensor on device number ``source``."""
        self.sent[source] += tensor.nbytes
        self.received[target] += tensor.nbytes
        return tensor.to(self.devices[target], copy=True)

    @property
    def total(self) -> int:
        """Bytes that went over a wire."""
        return sum(self.sent)

    @property
    def busiest(self) -> int:
        """Bytes that went in and out of the busiest device."""
        return max(map(sum, zip(self.sent, self.received, strict=True)))


def sum_on_first(vectors: list[Tensor], links: Links) -> None:
    """All-reduce in place: the first device adds up everything and sends the sum to the others.

    With k devices and n bytes each, 2(k - 1)n bytes move, all of them through the first device:
    the more devices there are, the longer they wait for it.
    """
    for source in range(1, len(vectors)):
        vectors[0] += links.copy(vectors[source], source, 0)
    for target in range(1, len(vectors)):
        vectors[target].copy_(links.copy(vectors[0], 0, target))


def shared(vectors: list[Tensor], links: Links) -> None:
    """All-reduce in place: each device sums one piece (reduce-scatter), then all exchange pieces.

    As many bytes move, but only 4n(k - 1)/k of them through any one device: less than 4n for any
    number of devices. NCCL's ring moves the same pieces, from neighbour to neighbour.
    """
    count = len(vectors)
    pieces = [vector.tensor_split(count) for vector in vectors]  # views: [device][piece]
    for owner in range(count):
        for source in range(count):
            if source != owner:
                pieces[owner][owner].add_(links.copy(pieces[source][owner], source, owner))
    for owner in range(count):  # all-gather
        for target in range(count):
            if target != owner:
                pieces[target][owner].copy_(links.copy(pieces[owner][owner], owner, target))


ALLREDUCES = {"sum_on_first": sum_on_first, "shared": shared}


def allreduce(grads: list[list[Tensor]], links: Links, how: str = "sum_on_first") -> None:
    """Sum gradients [device][parameter] over the devices, in place.

    A device's gradients travel as one vector: a few long copies are faster than many short ones.
    """
    vectors = [torch.cat([grad.flatten() for grad in own]) for own in grads]
    ALLREDUCES[how](vectors, links)
    for own, vector in zip(grads, vectors, strict=True):
        parts = vector.split([grad.numel() for grad in own])
        for grad, part in zip(own, parts, strict=True):
            grad.copy_(part.view_as(grad))


# 4. One step of training, and the test accuracy


def train_batch(
    images: Tensor,
    labels: Tensor,
    replicas: list[list[Tensor]],
    links: Links,
    lr: float,
    how: str = "sum_on_first",
) -> float:
    """Take a step of SGD on all devices, and return the loss of the batch before it.

    Each device divides by the size of the whole batch, not of its share. So the sum over the
    devices is the mean over the batch, even if the shares differ in size.
    """
    shares = split_batch(images, labels, links.devices)
    losses = [
        F.cross_entropy(lenet(x, params), y, reduction="sum") / len(images)
        for (x, y), params in zip(shares, replicas, strict=True)
    ]
    grads = [
        list(torch.autograd.grad(loss, params))
        for loss, params in zip(losses, replicas, strict=True)
    ]
    allreduce(grads, links, how)
    with torch.no_grad():
        for params, own in zip(replicas, grads, strict=True):
            for param, grad in zip(params, own, strict=True):
                param -= lr * grad
    return sum(loss.item() for loss in losses)


@torch.inference_mode()
def accuracy(
    images: Tensor, labels: Tensor, replicas: list[list[Tensor]], devices: list[torch.device]
) -> float:
    """The share of right answers; every device classifies its part of each batch."""
    hits = 0
    for batch in zip(images.split(1024), labels.split(1024), strict=True):
        shares = split_batch(*batch, devices)
        right = [
            (lenet(x, params).argmax(1) == y).sum()
            for (x, y), params in zip(shares, replicas, strict=True)
        ]
        hits += sum(count.item() for count in right)
    return hits / len(images)


# 5. The whole training


def find_devices(names: list[str] | None) -> list[torch.device]:
    """The devices by name; by default all GPUs, or two that share the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    gpus = torch.cuda.device_count()
    names = names or [f"cuda:{number}" for number in range(gpus)] or ["cpu", "cpu"]
    known = ["cpu", *(f"cuda:{number}" for number in range(gpus))]
    for name in names:
        if name not in known:
            raise UserError(f"--devices names {name}: choose from {', '.join(known)}.")
    return [torch.device(name) for name in names]


def synchronize(devices: list[torch.device]) -> None:
    """Wait for the GPUs: their work is only queued when a call returns."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def compare_allreduces(params: list[Tensor], devices: list[torch.device], times: int = 20) -> None:
    """Print how much each all-reduce of the gradients moves, and how long it takes."""
    size = sum(param.nbytes for param in params) / 1e6
    print(f"\nAll-reduce of {size:.2f} MB on {len(devices)} devices:")
    for how in ALLREDUCES:
        grads = [[param.to(device, copy=True) for param in params] for device in devices]
        links, seconds = Links(devices), []
        for _ in range(times):
            synchronize(devices)
            start = time.perf_counter()
            allreduce(grads, links, how)
            synchronize(devices)
            seconds.append(time.perf_counter() - start)
        print(
            f"  {how:12}  {links.total / times / 1e6:6.2f} MB moved, "
            f"{links.busiest / times / 1e6:6.2f} MB through the busiest device, "
            f"{1e3 * sorted(seconds)[times // 2]:6.2f} ms"
        )


def main(options: argparse.Namespace) -> float:
    """Train, and return the test accuracy."""
    devices = find_devices(options.devices)
    if not (min(options.batch_size, options.epochs) > 0 < options.lr < math.inf):
        raise UserError("--batch_size, --epochs and --lr must be above 0 and finite.")
    if options.scale_lr and not options.scale_batch:
        raise UserError("--scale_lr is for a larger batch: add --scale_batch.")
    batch_size = options.batch_size * (len(devices) if options.scale_batch else 1)
    lr = options.lr * (len(devices) if options.scale_lr else 1)
    if options.data_dir:
        train, test = (read_split(Path(options.data_dir), split) for split in ("train", "t10k"))
    else:
        train, test = draw_digits(8192, seed=1), draw_digits(2048, seed=2)
    params = get_params(options.seed)
    replicas, links = replicate(params, devices), Links(devices)
    names = " ".join(map(str, devices))
    print(f"{len(devices)} devices ({names}), batch {batch_size}, lr {lr:g}, {options.allreduce}")

    generator = torch.Generator().manual_seed(options.seed)
    step, steps = 0, options.epochs * math.ceil(len(train[0]) / batch_size)
    for epoch in range(options.epochs):
        start, losses = time.perf_counter(), []
        # No sample is left out: the last batch may be smaller and the shares unequal.
        for numbers in torch.randperm(len(train[0]), generator=generator).split(batch_size):
            images, labels = train[0][numbers], train[1][numbers]
            rate = lr * (1 - step / steps)
            losses.append(train_batch(images, labels, replicas, links, rate, options.allreduce))
            step += 1
        seconds = time.perf_counter() - start
        score = accuracy(*test, replicas, devices)
        print(
            f"epoch {epoch + 1}  loss {sum(losses) / len(losses):.4f}  test accuracy {score:.4f}  "
            f"{seconds:.1f} s  {links.total / 1e6:.0f} MB moved so far"
        )
    compare_allreduces(params, devices)
    return score


if __name__ == "__main__":
    try:
        main(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
