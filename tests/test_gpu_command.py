"""benchmarks/gpu.py: one part of its rehearsal, and what it does with a part that goes wrong."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from tests.conftest import ROOT, environment_with_gpus


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command on the CPU; the parts given replace the real ones."""

    def with_parts(*arguments, **parts):
        if parts:
            monkeypatch.setattr(gpu, "PARTS", parts)
        path = tmp_path / "gpu.json"
        status = gpu.main(["--device", "cpu", "--json", str(path), *arguments])
        found = json.loads(path.read_text())
        return status, {result["name"]: result for result in found["results"]}

    return with_parts


def test_the_kernels_pass_and_the_rest_is_named(run, capsys):
    status, results = run("--only", "kernels")
    outcomes = [result["outcome"] for result in results.values()]
    assert status == 0, results
    assert outcomes.count("PASS") == 13
    assert results["Triton kernel, the same bits"]["figure"] == "needs a GPU"
    assert "13 passed, 0 failed, 2 left out" in capsys.readouterr().out


@pytest.mark.gpu
def test_the_layer_on_a_gpu(tmp_path):
    parts = ["--only", "self_test", "kernels", "group_of_one", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *parts],
        cwd=ROOT,
        env=environment_with_gpus(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_part_that_says_nothing_fails(run):
    status, results = run("--only", "silent", silent=["compileall", "-q", "errors.py"])
    assert status == 1 and results["silent"]["outcome"] == "FAIL"


def test_a_part_whose_thread_raises_fails(run, monkeypatch):
    def raising(*_):
        raise UnicodeError("unreadable")

    monkeypatch.setattr(gpu, "run_part", raising)
    status, results = run("--only", "broken", broken=["part"])
    assert status == 1 and results["broken"]["figure"] == "UnicodeError: unreadable"


def test_a_failure_ends_nothing_and_is_the_exit_status(run, monkeypatch, capsys):
    monkeypatch.setitem(gpu.LIMIT, "cpu", 1.0)
    hanging = ["timeit", "-n", "1", "__import__('time').sleep(60)"]
    status, results = run(
        "--only", "missing", "hanging", missing=["no_such_module"], hanging=hanging
    )
    assert status == 1
    assert results["missing"]["outcome"] == results["hanging"]["outcome"] == "FAIL"
    assert "No module named" in results["missing"]["figure"]
    assert results["hanging"]["figure"] == "hadn't ended after 1 s"
    assert "0 passed, 2 failed" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out(run):
    status, results = run("--only", "part", "--seconds", "1", part=["no_such_module"])
    assert status == 0
    assert results["part"]["outcome"] == "LEFT OUT"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cuda, 1 process, float32: PASS", ("self-test, cuda, 1 process, float32", "PASS", "")),
        (
            "cuda, 2 processes, float64: FAIL (rank 1: output is off by 1.0e+00, more than 1e-11)",
            (
                "self-test, cuda, 2 processes, float64",
                "FAIL",
                "rank 1: output is off by 1.0e+00, more than 1e-11",
            ),
        ),
    ],
)
def test_lines_of_the_self_test(line, found):
    result = gpu.read_line("self_test", line)
    assert (result.name, result.outcome, result.figure) == found
    assert gpu.read_line("self_test", "torch 2.14.1, Python 3.12.1") is None
