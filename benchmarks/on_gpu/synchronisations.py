"""Where a script's training step waits for the GPU.

    python -m benchmarks.on_gpu.synchronisations train_segmentation.py --max_steps=12

Prints the number of times in four steps, and for each place in the code how often. torch reports
what it knows to wait; reading a value from the GPU is among it.
"""

import collections
import importlib
import sys
import traceback
import warnings
from pathlib import Path

import torch

from engine.command_line import parse
from engine.trainer import Trainer

ROOT = Path(__file__).parents[2]
WATCHED = range(6, 10)  # optimizer steps; earlier ones may wait once, to start something
PLACES = 2  # innermost lines of the repository that are named


def count_in(trainer: type[Trainer]) -> collections.Counter[str]:
    """Let the steps of ``trainer`` count where they wait; the counter fills as they run."""
    found: collections.Counter[str] = collections.Counter()
    train_step = trainer._train_step

    def note(message: Warning, *_: object, **__: object) -> None:
        if "synchron" in str(message):
            frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
            frames = [f for f in frames if f.filename != __file__][-PLACES:]
            found[" < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))] += 1

    def watched(self: Trainer) -> None:
        if self.state.progress.step not in WATCHED:
            return train_step(self)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = note
                return train_step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer._train_step = watched
    return found


def main() -> int:
    """Train as the script does, and print what was found."""
    script = importlib.import_module(sys.argv.pop(1).removesuffix(".py"))
    options = next(v for k, v in vars(script).items() if k.endswith("Options"))
    found = count_in(Trainer)
    status = script.main(parse(options, script.__doc__))
    places = ", ".join(f"{place} ({times})" for place, times in found.most_common(4))
    print(f"waits in {len(WATCHED)} steps: {found.total()}{': ' if places else ''}{places}")
    return status


if __name__ == "__main__":
    sys.exit(main())
