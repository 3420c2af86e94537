"""What the loop costs around the network: this project's steps against a bare loop's, by turns.

    python benchmarks/around_step.py                 LeNet on 32 images: a few milliseconds
    python benchmarks/around_step.py --batch_size 8

Both train the same network on the same batch, which stays in memory, in one process and one thread.
The bare loop scales the bytes, computes forward and backward passes and steps the optimizer. Ours
also averages the weights (--ema), counts, looks at every loss, and listens for signals. The steps
take turns, so that other work of the machine slows both; the ratio, ours over bare, is the median
over the steps, followed by the range of the middle half.
"""

import argparse
import copy
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from any folder

import train_classification
from engine.trainer import Trainer
from tasks.classification.options import ClassificationOptions

WARM_UP = 20


class Measured(Trainer):
    """A trainer whose training is a comparison of its steps with those of a bare loop."""

    steps = 0
    seconds: ClassVar[list[tuple[float, float]]] = []

    def _train(self) -> int:
        batch = next(self.train_batches)
        self.train_batches = itertools.repeat(batch)
        model = copy.deepcopy(self.state.model).train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True
        )

        def bare() -> float:
            on_device = self.task.to_device(batch)
            loss = F.cross_entropy(model(on_device["image"]), on_device["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        def ours() -> None:
            self._train_step()
            self.stop.beat()
            self._read_losses()

        for _ in range(self.steps):
            times = [time.perf_counter()]
            for step in (bare, ours):
                step()
                times.append(time.perf_counter())
            self.seconds.append(tuple(np.diff(times)))
        return 0


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--ema", type=float, default=0.999)
    given = parser.parse_args()
    torch.set_num_threads(1)
    Measured.steps = given.steps
    train_classification.Trainer = Measured
    with tempfile.TemporaryDirectory() as folder:
        options = ClassificationOptions(
            dataset="fake",
            model="lenet",
            image_size=[32, 32],
            batch_size=given.batch_size,
            ema=given.ema,
            optimizer="sgd",
            limit_train=2 * given.batch_size,
            limit_val=8,
            max_steps=2 * given.steps,
            eval_every=2 * given.steps,
            num_workers=0,
            pictures=0,
            output_dir=f"{folder}/run",
        )
        options.check()
        train_classification.main(options)
    bare, ours = np.array(Measured.seconds[WARM_UP:]).T
    low, middle, high = np.quantile(ours / bare, [0.25, 0.5, 0.75])
    print(
        f"bare {np.median(bare) * 1e3:.2f} ms, ours {np.median(ours) * 1e3:.2f} ms: "
        f"ratio {middle:.3f} ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
