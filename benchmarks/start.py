"""A job of one step in two processes, from the command to its end, beside a bare script.

    python benchmarks/start.py                 torchrun
    python benchmarks/start.py --rounds 9

The bare script imports torch and torchvision, joins the processes, wraps a ResNet-18 in DDP and
makes one step on random images. Ours is train_classification.py with the same network on as many
images, drawn by itself; it also writes its folder, evaluates 8 images and saves. Both take turns;
the ratio, ours over bare, is the median over the rounds, followed by the range of the middle half.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
BARE = """
import torch
import torchvision
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

torch.distributed.init_process_group("gloo")
model = DistributedDataParallel(torchvision.models.resnet18(num_classes=4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
F.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()
optimizer.step()
torch.distributed.destroy_process_group()
"""
OPTIONS = {
    "dataset": "fake",
    "model": "resnet18",
    "image_size": [64, 64],
    "batch_size": 4,
    "limit_train": 8,
    "limit_val": 8,
    "max_steps": 1,
    "pictures": 0,
}


def seconds(script: Path, *arguments: str) -> float:
    """How long a job of two processes takes."""
    start = time.perf_counter()
    subprocess.run(
        [*TORCHRUN, str(script), *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = []
    with tempfile.TemporaryDirectory() as name:
        bare = Path(name) / "bare.py"
        bare.write_text(BARE)
        for number in range(rounds):
            flags = [f"--{key}={value}" for key, value in OPTIONS.items()]
            output = f"--output_dir={name}/run{number}"
            ours = seconds(ROOT / "train_classification.py", *flags, output)
            found.append((seconds(bare), ours))
    bare_seconds, ours_seconds = np.array(found).T
    low, middle, high = np.quantile(ours_seconds / bare_seconds, [0.25, 0.5, 0.75])
    print(
        f"bare {np.median(bare_seconds):.1f} s, ours {np.median(ours_seconds):.1f} s: "
        f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    main()
