"""One command for whoever has a GPU: is everything right on it, and what does it cost?

    python benchmarks/gpu.py --device cuda              under four minutes on one GPU
    python benchmarks/gpu.py --device cpu               a rehearsal, and what it can't rehearse
    python benchmarks/gpu.py --only kernels self_test   parts of it

Prints a line per check (PASS or FAIL, with the value seen) and per timing, and writes all of it to
a JSON file. Checks come first and run side by side, each part in processes of its own; timings come
last, alone, as far as the time allows. A failure ends nothing. Exits with status 1 if a check
failed. docs/gpu.md says more.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.on_gpu.result import DETAILS, FAIL, LEFT_OUT, PASS, Result

WORKER = [sys.executable, "-m"]
PARTS = {
    "self_test": ["norm.check", "--devices", "DEVICE"],
    **{
        part: ["benchmarks.on_gpu.layer", "--device", "DEVICE", part]
        for part in ("group_of_one", "three_processes", "kernels")
    },
    **{
        script: ["benchmarks.on_gpu.scripts", "--device", "DEVICE", script]
        for script in ("classification", "segmentation", "detection", "video", "pipeline")
    },
}
TIMINGS = ["benchmarks.on_gpu.timings", "--device", "DEVICE", "--seconds", "SECONDS"]
# Seconds of the whole, and of a part before it counts as hanging.
BUDGET = {"cuda": 225.0, "cpu": 290.0}
LIMIT = {"cuda": 170.0, "cpu": 240.0}
LEAST = 15.0  # a part isn't started with less left
VERSIONS = ("torch", "torchvision", "accelerate", "timm", "triton")


class Report:
    """Prints results as they come and collects them.

    Args:
        started: ``time.monotonic()`` at the start.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.results: list[Result] = []
        self._lock = threading.Lock()

    def add(self, result: Result) -> None:
        """Print and keep a result."""
        with self._lock:
            self.results.append(result)
            print(f"{time.monotonic() - self.started:6.1f}s {result}", flush=True)

    def count(self, outcome: str) -> int:
        """The number of results with this outcome."""
        return sum(result.outcome == outcome for result in self.results)


def read_line(part: str, line: str) -> Result | None:
    """The result that a line of a part's output states; None where it states none."""
    if part == "self_test":  # "cuda, 1 process, float32: PASS" or "...: FAIL (why)"
        name, separator, outcome = line.partition(": ")
        if not separator or not outcome.startswith((PASS, FAIL)):
            return None
        figure = outcome[len(PASS) :].strip(" ()\n")
        return Result(f"self-test, {name}", outcome[: len(PASS)], figure)
    try:
        return Result(**json.loads(line))
    except (json.JSONDecodeError, TypeError):
        return None


def run_part(part: str, arguments: list[str], device: str, deadline: float, report: Report) -> None:
    """Run a part in processes of its own, and pass its results on as they come.

    Args:
        part: its name.
        arguments: of ``python -m``.
        device: "cpu" or "cuda".
        deadline: ``time.monotonic()`` at which everything ends.
        report: takes the results.
    """
    left = deadline - time.monotonic()
    if left < LEAST:
        report.add(Result(part, LEFT_OUT, "no time was left"))
        return
    seconds = min(left, LIMIT[device])
    replaced = {"DEVICE": device, "SECONDS": f"{left:.0f}"}
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "TORCHINDUCTOR_COMPILE_THREADS": "4",  # of each of several compiled runs at once
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        [*WORKER, *(replaced.get(argument, argument) for argument in arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that it can be ended with all that it started
    )
    expired = threading.Event()
    timer = threading.Timer(seconds, lambda: (expired.set(), end(process)))
    timer.start()
    outcomes, unread = [], []
    for line in process.stdout:
        result = read_line(part, line)
        if result:
            outcomes.append(result.outcome)
            report.add(result)
        else:
            unread.append(line)
    status = process.wait()
    timer.cancel()
    if expired.is_set() and seconds < LIMIT[device]:
        report.add(Result(part, LEFT_OUT, f"ended after {seconds:.0f} s, when time was up"))
    elif expired.is_set():
        report.add(Result(part, FAIL, f"hadn't ended after {seconds:.0f} s"))
    elif not outcomes or (status and FAIL not in outcomes):
        output = "".join(unread).strip()
        last = output.splitlines()[-1] if output else "no output"
        figure = f"ended with status {status}: {last}"
        report.add(Result(part, FAIL, figure, details=output[-DETAILS:]))


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def gpu_name() -> str | None:
    """The name of the first GPU, with the CUDA of torch's build; None where torch finds no GPU."""
    import torch  # takes seconds, and only this needs it

    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and report.

    Args:
        arguments: of the command line.

    Returns:
        The exit status: 0, or 1 if a check failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    names = [*PARTS, "timings"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--json", type=Path, help="file to write (runs/gpu_<device>.json)")
    parser.add_argument("--seconds", type=float, help="for everything")
    options = parser.parse_args(arguments)
    device, started = options.device, time.monotonic()
    name = gpu_name() if device == "cuda" else "CPU"
    if name is None:
        parser.error("torch finds no GPU here; --device cpu rehearses without one.")
    about = {
        "device": name,
        "processors": os.cpu_count(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join([about["device"], *(f"{k} {v}" for k, v in about["versions"].items())]))

    deadline = started + (options.seconds or BUDGET[device])
    report = Report(started)
    parts = {name: PARTS[name] for name in PARTS if name in options.only}
    with ThreadPoolExecutor(len(PARTS) if device == "cuda" else 2) as pool:
        begun = {
            part: pool.submit(run_part, part, command, device, deadline, report)
            for part, command in parts.items()
        }
    for part, thread in begun.items():
        if error := thread.exception():
            report.add(Result(part, FAIL, f"{type(error).__name__}: {error}"))
    if "timings" in options.only:
        run_part("timings", TIMINGS, device, deadline, report)

    about["seconds"] = round(time.monotonic() - started, 1)
    path = options.json or ROOT / "runs" / f"gpu_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = [asdict(result) for result in report.results]
    path.write_text(json.dumps(about | {"results": results}, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{report.count(PASS)} passed, {report.count(FAIL)} failed, {report.count(LEFT_OUT)} left "
        f"out, in {about['seconds']:.0f} s; all of it is in {path}."
    )
    return 1 if report.count(FAIL) else 0


if __name__ == "__main__":
    sys.exit(main())
