"""Captured steps, with a stand-in for CUDA's graphs that runs the work again at every replay.

That the graphs themselves give the same values is checked on a GPU, by ``make gpu``.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from engine import captured_step, trainer
from engine.captured_step import CapturedStep, Result
from engine.options import TrainingOptions
from errors import UserError
from tests.conftest import train_here
from tests.table import SCRIPTS


class Recorder:
    """Like a CUDA graph, it keeps the tensors that the work read and writes its result in place."""

    def __init__(self) -> None:
        self.graphs = self.replays = 0
        self.factor = 1.0  # of the captured gradients
        self.rate: float | None = None  # of the captured optimizer, whatever is asked for
        self.error: Exception | None = None

    def __call__(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.graphs += 1
        if self.error:
            raise self.error
        step = next(
            c.cell_contents for c in work.__closure__ if isinstance(c.cell_contents, CapturedStep)
        )
        kept: list[Result] = []
        step._try(lambda: kept.append(work()) or kept[0])
        (sums, grad_norm) = kept[0]

        def replay() -> None:
            self.replays += 1
            step.optimizer.zero_grad()
            if self.rate:
                step.lr.fill_(self.rate)
            new_sums, new_norm = work()
            sums.values.copy_(new_sums.values)
            grad_norm.copy_(new_norm)
            for parameter in step.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.factor

        return replay, kept[0]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Let the scripts capture their steps on this machine's CPU."""
    stand_in = Recorder()
    monkeypatch.setattr(
        trainer, "captures", lambda accelerator, options: options.cuda_graph != "off"
    )
    monkeypatch.setattr(trainer, "graph_recorder", lambda: stand_in)
    monkeypatch.setattr(TrainingOptions, "check_launch", lambda *_: None)
    for name in ("synchronize", "set_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: None)
    return stand_in


# A learning rate that float32 holds: a captured step has it in float32.
EXACT = {"lr": 2.0**-10, "schedule": "constant", "max_steps": 6, "limit_train": 12, "eval_every": 6}
WARM_UP = captured_step.WARM_UP
TRIALS = 2  # replays of a new graph that leave no trace
FURTHER = {
    "train_segmentation": {"grad_accum": 2, "eval_every": 4},
    "train_detection": {"mosaic": 1.0, "max_steps": 12, "eval_every": 12, "limit_train": 16},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_captured_steps_train_as_eager_ones(script, recorder, tmp_path):
    options = EXACT | SCRIPTS[script].random | {"clip_grad": 0.5, "optimizer": "adamw"}
    options |= FURTHER.get(script, {})
    eager = train_here(script, tmp_path / "eager", cuda_graph="off", **options)
    captured = train_here(script, tmp_path / "captured", **options)
    assert captured.losses == eager.losses and captured.evals == eager.evals
    norms = [[line["grad_norm"] for line in run.steps] for run in (captured, eager)]
    assert norms[0] == norms[1]
    steps = options["max_steps"] - WARM_UP
    if script == "train_detection":
        # Its batches differ in shape: the first one runs eagerly, the second is captured.
        assert recorder.graphs > 1
        assert 0 < recorder.replays - TRIALS * recorder.graphs <= steps
    else:
        assert recorder.graphs == 1 and recorder.replays == TRIALS + steps
    if script != "train_segmentation":
        return
    # A run resumed by the other kind of step goes on with the same bits.
    for graph, run in (("off", captured), ("auto", eager)):
        middle = str(run.path / "checkpoints" / "step_00000004")
        folder = tmp_path / f"resumed_{graph}"
        resumed = train_here(script, folder, resume=middle, cuda_graph=graph, **options)
        assert resumed.losses == eager.losses[4:]


def test_a_step_that_cannot_be_captured_runs_eagerly(recorder, monkeypatch, tmp_path, capsys):
    """As where the host reads a value: torch raises before anything is captured."""

    @contextlib.contextmanager
    def refusing(device):
        yield
        raise RuntimeError("called a synchronizing CUDA operation\nmore")

    monkeypatch.setattr(captured_step, "refusing_to_wait", refusing)
    options = EXACT | SCRIPTS["train_classification"].random
    eager = train_here("train_classification", tmp_path / "eager", cuda_graph="off", **options)
    tried = train_here("train_classification", tmp_path / "tried", **options)
    assert tried.losses == eager.losses and recorder.graphs == 0
    sentence = "CUDA graph: called a synchronizing CUDA operation. Steps run eagerly."
    assert capsys.readouterr().out.count(sentence) == 1
    with pytest.raises(UserError, match=r"can't be captured .*--cuda_graph off"):
        train_here("train_classification", tmp_path / "must", cuda_graph="on", **options)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("broken")])
def test_a_capture_that_fails(recorder, tmp_path, capsys, error):
    """Without memory for a graph the steps go on; after a broken capture they can't."""
    recorder.error = error
    if isinstance(error, torch.OutOfMemoryError):
        eager = train_here("train_classification", tmp_path / "eager", cuda_graph="off", **EXACT)
        tried = train_here("train_classification", tmp_path / "tried", **EXACT)
        assert tried.losses == eager.losses and recorder.graphs == 1
        assert "out of memory. Steps run eagerly." in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match="can't be captured in a CUDA graph: broken"):
            train_here("train_classification", tmp_path, **EXACT)


def test_a_captured_step_that_differs_is_refused(recorder, tmp_path):
    recorder.factor = 0.0
    with pytest.raises(UserError, match=r"a step is wrong under torch.*the gradient of .* norm 0"):
        train_here("train_segmentation", tmp_path, **EXACT)


def test_a_captured_step_with_a_constant_learning_rate_is_refused(recorder, tmp_path):
    recorder.rate = 2.0**-10
    with pytest.raises(UserError, match="the weights don't follow the learning rate"):
        train_here("train_segmentation", tmp_path, **EXACT)


@pytest.mark.parametrize(
    ("option", "device", "processes", "double", "wanted"),
    [
        ("auto", "cuda", 1, False, True),
        ("auto", "cuda", 2, False, False),
        ("auto", "cuda", 1, True, False),
        ("auto", "cpu", 1, False, False),
        ("on", "cuda", 2, False, True),
        ("off", "cuda", 1, False, False),
    ],
)
def test_when_steps_are_captured(option, device, processes, double, wanted):
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
    options = SimpleNamespace(cuda_graph=option, double=double)
    assert captured_step.captures(accelerator, options) == wanted


def test_the_option_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="--cuda_graph on needs a GPU"):
        train_here("train_segmentation", tmp_path, cuda_graph="on")
