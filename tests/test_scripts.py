"""What every training script promises, and the options of each, in this process."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.plan import make_plan
from errors import UserError
from tasks.classification.options import ClassificationOptions
from tasks.classification.sources import load_data
from tasks.classification.task import Classification
from tests.conftest import ROOT, Run, train_here
from tests.table import SCRIPTS


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each script that the others differ from by one option."""
    folder = tmp_path_factory.mktemp("baselines")
    return {script: train_here(script, folder / script) for script in SCRIPTS}


def each(name: str) -> pytest.MarkDecorator:
    """Every script with every entry of a field of its row in the table."""
    pairs = [(script, entry) for script, row in SCRIPTS.items() for entry in getattr(row, name)]
    return pytest.mark.parametrize("script, entry", pairs, ids=str)


def test_no_figure_is_still_to_be_filled_in() -> None:
    placeholder = re.compile(r"\b(TODO|TBD|FIXME|XXX|FIGURES?|\w+_(RESULTS?|FIGURES?))\b|^BF16\b")
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = [(page.name, line) for page in pages for line in page.read_text().splitlines()]
    assert placeholder.search("KILL_RESULT") and placeholder.search("FIGURES") and len(pages) > 9
    assert [(name, line) for name, line in lines if placeholder.search(line)] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_files_metrics_and_tensorboard(baselines, script) -> None:
    expected, run = SCRIPTS[script], baselines[script]
    assert run.status == 0
    assert run.summary["task"] == expected.task and run.summary["steps"] == 2
    assert set(run.evals[-1]) >= expected.metrics
    assert all(np.isfinite(list(run.evals[-1].values())))
    assert set(run.steps[-1]) >= {"loss", "lr", "grad_norm", *expected.scalars}
    drawn = {path.stem for path in run.path.glob("*.png")}
    assert drawn >= expected.figures
    (events,) = run.path.rglob("events.out.tfevents*")
    tags = EventAccumulator(str(events.parent)).Reload().Tags()
    assert {f"val/{name}" for name in drawn} == {*tags["images"]}
    assert {f"val/{name}" for name in expected.metrics} <= {*tags["scalars"]}


@each("changes")
def test_an_option_changes_the_training(baselines, script, entry, tmp_path: Path) -> None:
    run = train_here(script, tmp_path / "run", **entry)
    assert run.status == 0 and all(np.isfinite(run.losses))
    assert run.losses != baselines[script].losses or not same_weights(run, baselines[script])


@each("same")
def test_an_option_does_not_change_the_training(baselines, script, entry, tmp_path: Path) -> None:
    run = train_here(script, tmp_path / "run", **entry)
    assert run.losses == baselines[script].losses and same_weights(run, baselines[script])


def same_weights(run: Run, other: Run) -> bool:
    mine, theirs = (load_file(r.path / "best.safetensors") for r in (run, other))
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


@each("mistakes")
def test_a_mistake_is_one_sentence(script, entry, tmp_path: Path) -> None:
    options, words = entry
    with pytest.raises(UserError) as caught:
        train_here(script, tmp_path / "run", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_grad_accum_equals_the_doubled_batch(script, tmp_path: Path) -> None:
    # GroupNorm, because the statistics of BatchNorm are those of a forward pass.
    options = {"norm": "group_norm", "double": True, "max_steps": 3, "clip_grad": 0.5}
    whole = train_here(script, tmp_path / "whole", batch_size=4, **options)
    parts = train_here(script, tmp_path / "parts", batch_size=2, grad_accum=2, **options)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9)
    norms = [[line["grad_norm"] for line in run.steps] for run in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


@pytest.mark.parametrize("script", SCRIPTS)
def test_eval_only_repeats_the_evaluation(baselines, script, tmp_path: Path) -> None:
    best = str(baselines[script].path / "best.safetensors")
    run = train_here(script, tmp_path / "run", eval_only=True, weights=best)
    assert run.evals[-1] == pytest.approx(baselines[script].evals[-1], rel=1e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_check_data_reads_everything(script, tmp_path: Path, capsys) -> None:
    run = train_here(script, tmp_path / "run", check_data=True)
    assert run.status == 0 and not run.path.exists()
    printed = capsys.readouterr().out
    assert "train: 16 samples, 0 bad" in printed and "val: 5 samples, 0 bad" in printed


@pytest.mark.parametrize("pictures", [0, 3])
def test_the_surest_mistakes_are_read_once(monkeypatch, pictures) -> None:
    """Not once per batch, which on a GPU would wait for the device; and not where none is drawn."""
    options = ClassificationOptions(
        image_size=[8, 8], pictures=pictures, limit_train=2, limit_val=2
    )
    task = Classification(
        options, load_data(options), make_plan(options, 2, 1), torch.device("cpu")
    )
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 6
    batches = [
        {"image": logits[i : i + 8], "label": labels[i : i + 8], "index": torch.arange(i, i + 8)}
        for i in range(0, 40, 8)
    ]
    monkeypatch.setattr(task, "to_device", lambda batch: batch)
    reads, read = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or read(self))
    records = task.evaluate(lambda images: images, batches).records
    assert len(reads) == (pictures > 0)
    sure, guesses = logits.softmax(1).max(1)
    wrong = [i for i in sure.argsort(descending=True).numpy() if guesses[i] != labels[i]]
    assert [int(index) for *_, index in records] == wrong[:pictures]
