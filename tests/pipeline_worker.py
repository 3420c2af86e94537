"""Run train_pipeline.py several times in one launch: imports take longer than runs.

torchrun ... tests/pipeline_worker.py '[[{"lr": 0.1, ...}, {"ACCELERATE_...": "..."}], ...]'
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    import train_pipeline

    # Several Accelerators share one process group, which the end of the first would destroy.
    Accelerator.end_training = lambda self: [tracker.finish() for tracker in self.trackers]
    for options, environment in json.loads(sys.argv[1]):
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=False)
        train_pipeline.main(train_pipeline.PipelineOptions(**options))


if __name__ == "__main__":
    main()
