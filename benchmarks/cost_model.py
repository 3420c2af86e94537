"""A step on 2 to 1,024 GPUs on paper: what synchronising adds, from counted collectives.

    python benchmarks/cost_model.py                        ResNet-50, 2 images per GPU
    python benchmarks/cost_model.py --net resnet18 --compute_ms 2

docs/scaling.md states the assumptions, which are options here. Nothing is measured on several GPUs.
"""

import argparse
import math

import torchvision
from torch import nn

PER_NODE = 8
FLOAT = 4  # bytes


def main() -> None:
    """Count the layers of a network and print a row for each number of GPUs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="resnet50", help="one of torchvision's")
    parser.add_argument("--compute_ms", type=float, default=4.1, help="a step without exchange")
    parser.add_argument("--latency_us", type=float, default=20, help="of a small collective")
    parser.add_argument("--fast_us", type=float, default=7, help="the same by symmetric memory")
    parser.add_argument("--hop_us", type=float, default=5, help="more per doubling of the nodes")
    parser.add_argument("--node_gb_s", type=float, default=350, help="per GPU within a node")
    parser.add_argument("--net_gb_s", type=float, default=45, help="per GPU between nodes")
    options = parser.parse_args()
    model = getattr(torchvision.models, options.net)(weights=None)
    channels = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    gradients = FLOAT * sum(p.numel() for p in model.parameters())
    row = FLOAT * sum(2 * c + 1 for c in channels)
    sums = FLOAT * sum(2 * c for c in channels)
    print(
        f"{options.net}: {len(channels)} layers, {2 * len(channels)} collectives a step; a rank "
        f"sends {row / 1e3:.0f} kB of statistics, {sums / 1e3:.0f} kB of sums and "
        f"{gradients / 1e6:.0f} MB of gradients"
    )
    print(
        "GPUs | gradients | gathers | sums | bn | sync_bn | own communicator | groups of 8 | fast"
    )

    def exchanged(gpus: int, latency: float) -> tuple[float, float]:
        """Milliseconds of all gathers and of all sums."""
        nodes = max(1, gpus // PER_NODE)
        speed = 1e6 * (options.net_gb_s if nodes > 1 else options.node_gb_s)  # bytes per ms
        waits = len(channels) * (latency + options.hop_us * math.log2(nodes)) / 1e3
        return waits + (gpus - 1) * row / speed, waits + 2 * sums / speed

    for gpus in (2, 4, 8, 16, 64, 256, 1024):
        speed = 1e6 * (options.net_gb_s if gpus > PER_NODE else options.node_gb_s)
        gradient = 2 * (gpus - 1) / gpus * gradients / speed

        def step(gathers: float, totals: float, gradient: float = gradient) -> float:
            """The gradients are exchanged beside the backward pass, two thirds of a step."""
            backward = 2 / 3 * options.compute_ms + totals
            return options.compute_ms / 3 + gathers + max(backward, gradient)

        gathers, totals = exchanged(gpus, options.latency_us)
        near = exchanged(min(gpus, PER_NODE), options.latency_us)
        fast = exchanged(min(gpus, PER_NODE), options.fast_us)
        # In one communicator a layer's sums wait for the bucket of gradients that is under way.
        steps = (step(0, 0), step(gathers, totals + gradient / 2), step(gathers, totals))
        groups = (step(*near), step(*fast)) if gpus > PER_NODE else ()  # else there is only one
        numbers = (gradient, gathers, totals, *steps, *groups)
        print(f"{gpus:4} | " + " | ".join(f"{number:.1f}" for number in numbers))


if __name__ == "__main__":
    main()
