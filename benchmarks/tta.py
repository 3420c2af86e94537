"""What test-time augmentation and tiles gain and cost: the score and the time of predict.py.

    python benchmarks/tta.py --weights runs/mine --dataset camvid --data_dir ~/camvid

Every further option is predict.py's.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
VARIANTS = ([], ["flip"], ["0.75", "1.25"], ["flip", "0.75", "1.25"])
SHOWN = ("miou", "ap", "ap50", "top1")


def main(options: list[str]) -> int:
    """Run predict.py with each variant and print a line for it."""
    print(f"{'--tta':<20} {'score':<24} {'seconds':>8}")
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "predict.py", *options, f"--output={folder}/out"]
            command += [f"--tta={json.dumps(variant)}"] if variant else []
            begun = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - begun
            file = Path(folder, "out", "metrics.json")
            if not file.exists():
                print(f"{' '.join(variant):<20} {done.stderr.strip().splitlines()[-1]}")
                continue
            metrics = json.loads(file.read_text())["metrics"]
            score = ", ".join(f"{k} {metrics[k]:.4f}" for k in SHOWN if k in metrics)
            print(f"{' '.join(variant) or 'none':<20} {score:<24} {seconds:>8.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
