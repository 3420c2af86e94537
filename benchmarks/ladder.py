"""LeNet on every rung of the ladder: the accuracy must not depend on the number of devices.

    python benchmarks/ladder.py

The digits of examples/ are written as the files of FashionMNIST, so that every rung reads the same
images. Each trains with batch 256 over all devices and plain SGD, whose rate falls from --lr to 0:
by hand on one and on two devices, by CudaMultiGPU on all GPUs or the CPU, and by
train_classification.py under Accelerate in one and in two processes. The rungs differ in the first
weights, the pixel scaling, the order of samples and the way the rate falls, so equal accuracies are
expected only within a rung.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch
from digits import draw_digits
from torch import Tensor
from torch.nn import functional as F

from gpu_utils import CudaMultiGPU
from models.lenet import LeNet

BATCH = 256
SPLITS = {"train": (8192, 1), "t10k": (2048, 2)}  # images, seed


def write_digits(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Write the digits as idx files, and return what a reader of the files gets."""
    splits = {}
    for split, (count, seed) in SPLITS.items():
        images, labels = draw_digits(count, seed)
        images = (255 * images.clamp(0, 1)).round().to(torch.uint8)
        for name, values, kind in (("images", images[:, 0], 3), ("labels", labels.byte(), 1)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = bytes([0, 0, 8, kind]) + sizes + values.numpy().tobytes()
            path = folder / f"{split}-{name}-idx{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(content, 1))
        splits[split] = images / 255, labels
    return splits


def by_hand(folder: Path, devices: list[str], args: argparse.Namespace) -> float:
    """Run the example and return the last test accuracy that it prints."""
    script = [sys.executable, "examples/data_parallel_from_scratch.py", "--devices", *devices]
    options = ["--data_dir", folder, "--lr", args.lr, "--epochs", args.epochs, "--seed", args.seed]
    printed = run([*script, *options])
    return float(re.findall(r"test accuracy ([\d.]+)", printed)[-1])


def by_cuda_multi_gpu(
    splits: dict[str, tuple[Tensor, Tensor]], args: argparse.Namespace
) -> tuple[str, float]:
    """Train with CudaMultiGPU; return the devices' names and the last test accuracy."""
    torch.manual_seed(args.seed)
    model = CudaMultiGPU(LeNet(in_channels=1))
    optimizer = torch.optim.SGD(model.parameters(), args.lr)
    images, labels = splits["train"]
    total = args.epochs * -(-len(images) // BATCH)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)
    for _ in range(args.epochs):
        for numbers in torch.randperm(len(images)).split(BATCH):
            logits = model(images[numbers].to(model.device))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[numbers].to(model.device)).backward()
            optimizer.step()
            falling.step()
    images, labels = splits["t10k"]
    with torch.no_grad():
        right = model(images.to(model.device)).argmax(1).cpu() == labels
    devices = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "CPU"
    return devices, right.float().mean().item()


def by_accelerate(folder: Path, processes: int, args: argparse.Namespace) -> float:
    """Train under Accelerate and return the top-1 accuracy of the last evaluation."""
    output = folder / f"accelerate-{processes}"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    config = ["--config_file", f"accelerate_configs/{processes}gpu.yaml"]
    options = {
        "dataset": "fashion_mnist",
        "data_dir": folder,
        "model": "lenet",
        "image_size": [28, 28],
        "crop_padding": 0,
        "crop_ratio": 1,
        "hflip": 0,
        "optimizer": "sgd",
        "momentum": 0,
        "lr": args.lr,
        "schedule": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0,
        "ema": 0,
        "global_batch_size": BATCH,
        "epochs": args.epochs,
        "seed": args.seed,
        "output_dir": output,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    run([*launch, *config, "--main_process_port", "0", "train_classification.py", *flags])
    return json.loads((output / "summary.json").read_text())["metrics"]["last"]["top1"]


def run(command: list) -> str:
    """Run a command at the repository's root and return its output."""
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def main() -> None:
    """Train on every rung and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| rung | devices | test accuracy |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        splits = write_digits(folder)
        for devices in (["cpu"], ["cpu", "cpu"]):
            score = by_hand(folder, devices, args)
            print(f"| by hand | {len(devices)} | {score:.1%} |", flush=True)
        devices, score = by_cuda_multi_gpu(splits, args)
        print(f"| CudaMultiGPU | {devices} | {score:.1%} |", flush=True)
        for processes in (1, 2):
            score = by_accelerate(folder, processes, args)
            print(f"| Accelerate | {processes} processes | {score:.1%} |", flush=True)


if __name__ == "__main__":
    main()
