"""Run a training script's ``main`` several times in one launch: imports take longer than runs.

accelerate launch ... tests/several_runs.py '[["train_segmentation", {"lr": 0.1, ...}], ...]'
"""

import importlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from tests.table import SCRIPTS

    # Several Accelerators share one process group, which the end of the first would destroy.
    Accelerator.end_training = lambda self: [tracker.finish() for tracker in self.trackers]
    for script, options in json.loads(sys.argv[1]):
        AcceleratorState._reset_state(reset_partial_state=False)
        importlib.import_module(script).main(SCRIPTS[script].options(**options))


if __name__ == "__main__":
    main()
