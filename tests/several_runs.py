"""Run a training script's ``main`` several times in one launch: imports take longer than runs.

accelerate launch ... tests/several_runs.py '[["train_segmentation", {"lr": 0.1, ...}], ...]'
"""

import importlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> None:
    from accelerate.state import AcceleratorState

    from engine import launch

    # Several Accelerators share one process group, which the last one's end would destroy.
    launch.close = lambda accelerator: accelerator.wait_for_everyone()
    for script, options in json.loads(sys.argv[1]):
        module = importlib.import_module(script)
        module.close = launch.close
        AcceleratorState._reset_state(reset_partial_state=False)
        module.main(module.Options(**options))


if __name__ == "__main__":
    main()
