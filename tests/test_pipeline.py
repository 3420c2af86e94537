"""train_pipeline.py: a network cut over processes trains as the uncut one does, and resumes."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

import train_pipeline
from data.pixels import IMAGENET
from data.stream import SampleKey, SampleStream
from engine.about import KEY
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.command_line import parse
from engine.loaders import Loading
from errors import UserError
from models.classification import build_classification_model
from models.syncbnnet import SyncBNNet
from pipeline.batches import PipelineBatches, PipelineKeys
from pipeline.cut import Stage, costs_of, cut_at, cut_evenly, cut_network, units_of
from pipeline.options import PipelineOptions
from pipeline.schedule import Place, ideal_bubble
from pipeline.setup import build_model, load_data
from pipeline.training import PipelineTrainer
from tasks.classification.dataset import EvalDataset, Reader, TrainDataset
from tasks.classification.transforms import eval_transform, train_transform
from tests.conftest import Run, accelerate, flags, launched
from tests.test_launch import said
from tests.test_resume import interrupt, kill_one, terminate

TINY = {
    "model": "syncbnnet",
    "image_size": 32,
    "limit_train": 24,
    "limit_val": 13,  # in batches of 8 and, over two pipelines, of 4: the last ones are filled up
    "max_steps": 3,
    "batch_size": 8,
    "microbatches": 2,
    "num_workers": 0,
    "log_every": 1,
    "lr": 0.1,
    "weight_decay": 0.01,
    "double": True,
}
# Long enough to be interrupted.
LONG = {"max_steps": 24, "eval_every": 8, "checkpoint_every": 3, "num_workers": 1, "double": False}
MIDDLE = "gpipe/checkpoints/step_00000002"

# Options of the runs on 2 processes, by name; "alone" has one process for each.
TWO = {
    "gpipe": {"num_workers": 1, "eval_every": 2},
    "again": {"eval_every": 2, "resume": MIDDLE},
    "1f1b": {"schedule": "1f1b", "split_at": "backbone.stages.1"},
    "naive": {"microbatches": 1},
    "replicas": {"stages": 1},
    "resnet": {"model": "resnet18", "split_at": ["layer4.1"], "limit_train": 8, "max_steps": 2},
    "bf16": {"double": False},
    "long": LONG,
}
FOUR = {
    "2x2": {"stages": 2, "schedule": "1f1b"},
    "4": {"microbatches": 4, "schedule": "1f1b", "balance": "compute"},
    "moved": {"eval_every": 2, "resume": MIDDLE, "stages": 2, "schedule": "1f1b"},
}
UNCUT = [("two", name) for name in ("gpipe", "1f1b", "naive", "replicas", "resnet")]
UNCUT += [("four", name) for name in ("2x2", "4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


def launch(folder: Path, command: list[str], runs: dict[str, dict]) -> dict[str, Run]:
    todo = []
    for name, options in runs.items():
        options = TINY | {"output_dir": str(folder / name)} | options
        if "resume" in options:
            options["resume"] = str(folder / options["resume"])
        precision = "bf16" if name == "bf16" else "no"
        todo.append([options, {"ACCELERATE_MIXED_PRECISION": precision}])
    done = launched([*command, "tests/pipeline_worker.py", json.dumps(todo)], folder, timeout=120)
    assert done.status == 0, done.output
    return {name: Run(folder / name, 0, done.output) for name in runs}


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Run]:
    return launch(folder, accelerate(2), TWO)


@pytest.fixture(scope="module")
def four(folder: Path, two: dict[str, Run]) -> dict[str, Run]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=4"]
    return launch(folder, [*torchrun, "--standalone"], FOUR)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator:
    """Run the script in this process, as ``python train_pipeline.py`` does."""

    def run(**options: object) -> Run:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        parsed = PipelineOptions(**TINY | {"output_dir": str(tmp_path / "run")} | options)
        parsed.check()
        status = train_pipeline.main(parsed)
        if dist.is_initialized():
            dist.destroy_process_group()
        return Run(Path(parsed.output_dir), status)

    yield run
    if dist.is_initialized():
        dist.destroy_process_group()


def final(run: Run) -> Checkpoint:
    return load_checkpoint(run.path / "checkpoints" / run.checkpoints[-1])


def train_uncut(options: PipelineOptions) -> tuple[nn.Module, list[float], dict[str, float]]:
    """The same training written down plainly: the model, its losses and its final metrics."""
    data = load_data(options)
    model = build_model(options, len(data.classes)).double()
    optimizer = torch.optim.SGD(
        param_groups_weight_decay(model, options.weight_decay),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=True,
    )
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps)
    mean, std = 255 * torch.tensor(IMAGENET, dtype=torch.float64)[..., None, None]

    def batch(samples: list[dict]) -> tuple:
        images = torch.stack([(sample["image"].double() - mean) / std for sample in samples])
        return images, torch.tensor([sample["label"] for sample in samples])

    train, val = (Reader(rows, len(data.classes)) for rows in (data.train, data.val))
    dataset = TrainDataset(train, train_transform(options.size), options.seed)
    stream, losses = SampleStream(len(dataset), options.seed), []
    for step in range(options.max_steps):
        first = step * options.batch_size
        images, labels = batch([dataset[stream[first + n]] for n in range(options.batch_size)])
        parts = [tensor.chunk(options.microbatches) for tensor in (images, labels)]
        losses_of_parts = [F.cross_entropy(model(x), y) for x, y in zip(*parts, strict=True)]
        loss = torch.stack(losses_of_parts).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())

    model.eval()
    dataset = EvalDataset(val, eval_transform(options.size))
    images, labels = batch([dataset[index] for index in range(len(dataset))])
    with torch.no_grad():
        logits = model(images)
    metrics = {
        "top1": (logits.argmax(1) == labels).double().mean().item(),
        "loss": F.cross_entropy(logits, labels).item(),
        "top5": (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item(),
    }
    return model, losses, metrics


def options_of(run: Run) -> PipelineOptions:
    return PipelineOptions(**yaml.safe_load((run.path / "config.yaml").read_text()))


@pytest.mark.parametrize("launch, name", UNCUT)
def test_processes_train_as_the_uncut_network(launch, name, request) -> None:
    run = request.getfixturevalue(launch)[name]
    model, losses, metrics = train_uncut(options_of(run))
    assert run.losses == pytest.approx(losses, rel=1e-9)
    assert run.evals[-1] == pytest.approx(metrics, rel=1e-9)
    weights = final(run).model
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_bfloat16_trains_nearly_the_same(two: dict[str, Run]) -> None:
    _, losses, _ = train_uncut(options_of(two["bf16"]))
    assert two["bf16"].losses != pytest.approx(losses, rel=1e-5)
    assert two["bf16"].losses == pytest.approx(losses, rel=0.05)


def test_the_files_of_a_run(two: dict[str, Run], four: dict[str, Run]) -> None:
    run = two["gpipe"]
    files = {"config.yaml", "metrics.jsonl", "summary.json", "best.safetensors", "confusion.png"}
    assert {path.name for path in run.path.iterdir()} >= files | {"tensorboard", "checkpoints"}
    assert run.checkpoints == ["step_00000002", "step_00000003"]
    assert [line["step"] for line in run.steps] == [1, 2, 3] and len(run.evals) == 2
    assert [line["samples"] for line in run.steps] == [8, 16, 24]
    summary = run.summary
    expected = {"task": "pipeline", "world_size": 2, "replicas": 1, "steps": 3}
    assert summary.items() >= expected.items()
    assert summary["metrics"]["last"] == run.evals[-1]
    assert summary["metrics"]["best"]["top1"] == max(line["top1"] for line in run.evals)
    first, second = summary["stages"]
    assert first["first"] == "backbone.stem" and second["last"] == "head"
    assert first["parameters"] + second["parameters"] == pytest.approx(1)
    assert first["compute"] + second["compute"] == pytest.approx(1)
    for name, replicas, norm in [("2x2", 2, "sync_bn"), ("4", 1, "bn")]:
        assert four[name].summary["replicas"] == replicas
        assert four[name].summary["norm"]["kind"] == norm


def test_the_bubble_is_what_the_stages_did_not_compute(two: dict[str, Run]) -> None:
    for name, ideal in {"gpipe": 1 / 3, "naive": 1 / 2}.items():
        summary = two[name].summary
        bubble, busy = summary["bubble"], [each["busy_seconds"] for each in summary["processes"]]
        assert bubble["ideal"] == pytest.approx(ideal)
        available = 2 * bubble["step_seconds"]
        assert bubble["measured"] == pytest.approx(1 - sum(busy) / available)
        assert min(busy) > 0 and 0 < bubble["measured"] < 1
        assert "bubble" in two[name].steps[-1]
    # In the naive cut the two never compute at the same time.
    assert two["naive"].summary["bubble"]["measured"] >= 0.5
    assert two["replicas"].summary["bubble"]["ideal"] == 0
    assert ideal_bubble(4, 1) == 0.75 and ideal_bubble(1, 4) == 0


# Resuming


def test_a_run_resumes_bit_for_bit_on_as_many_stages(two: dict[str, Run]) -> None:
    whole, again = two["gpipe"], two["again"]
    assert again.losses == whole.losses[2:] and again.evals == whole.evals[1:]
    assert again.steps[0]["lr"] == whole.steps[2]["lr"]
    for mine, theirs in [
        (final(again).model, final(whole).model),
        (final(again).optimizer["momentum"], final(whole).optimizer["momentum"]),
    ]:
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_resumes_on_other_stages_and_pipelines(two, four, alone) -> None:
    whole = two["gpipe"]
    one = alone(resume=str(whole.path / "checkpoints" / "step_00000002"), eval_every=2)
    for run in (four["moved"], one):
        assert run.losses == pytest.approx(whole.losses[2:], rel=1e-9)
        assert run.evals == [pytest.approx(whole.evals[1], rel=1e-9)]
        for mine, theirs in [
            (final(run).model, final(whole).model),
            (final(run).optimizer["momentum"], final(whole).optimizer["momentum"]),
        ]:
            assert mine.keys() == theirs.keys()
            for name in mine:
                torch.testing.assert_close(mine[name], theirs[name], rtol=1e-8, atol=1e-10)


def test_a_run_killed_and_terminated_continues_bit_for_bit(two, tmp_path: Path) -> None:
    path, reference = tmp_path / "run", two["long"]
    options = TINY | LONG | {"output_dir": path, "resume": "auto"}
    start = accelerate(2, "train_pipeline.py", *flags(**options))
    for step, strike in [(7, kill_one), (13, terminate)]:
        status, output = interrupt(start, path, step, strike)
        assert status != 0
    assert "resume auto continues" in output
    # SIGTERM saves where the run stopped, not at the last regular checkpoint.
    assert Run(path, 0).checkpoints[-1] == f"step_{Run(path, 0).lines[-1]['step']:08d}"
    run = launched(start, path)
    assert run.status == 0, run.output
    keys = ("step", "samples", "loss", "lr", "eval")
    curves = [[{k: line.get(k) for k in keys} for line in each.lines] for each in (run, reference)]
    assert curves[0] == curves[1]
    assert run.summary["metrics"] == reference.summary["metrics"]
    assert run.checkpoints == reference.checkpoints


def test_a_signal_gives_its_status(alone, monkeypatch) -> None:
    step = PipelineTrainer._train_step

    def interrupted(self: PipelineTrainer) -> None:
        if self.state.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while not self.stop.signum:
                pass
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineTrainer, "_train_step", interrupted)
        run = alone(eval_every=2)
    assert run.status == 130 and run.checkpoints == ["step_00000002"] and not run.evals
    run = alone(eval_every=2, resume="auto")  # the evaluation of step 2 is made up for
    assert run.status == 0 and len(run.losses) == 3 and len(run.evals) == 2


def test_another_training_is_not_continued(two, alone, tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds another run \(.*\); add --resume auto"):
        alone(output_dir=str(two["gpipe"].path))
    with pytest.raises(UserError, match="--microbatches 2 -> 4"):
        alone(resume=str(two["gpipe"].path / "checkpoints" / "step_00000003"), microbatches=4)


def test_a_finished_run_is_evaluated_on_one_process(two, alone) -> None:
    path = two["1f1b"].path
    before = Run(path, 0).evals[-1]
    run = alone(output_dir=str(path), resume="auto", eval_only=True)
    assert run.status == 0 and (path / "evaluation.json").exists()
    assert run.evals[-1] == pytest.approx(before, rel=1e-9)


def test_one_process_is_one_stage_and_loads_the_weights_of_several(two, alone, tmp_path) -> None:
    weights = two["gpipe"].path / "checkpoints" / "step_00000003" / "model.safetensors"
    run = alone(weights=str(weights), max_steps=0, epochs=0)
    assert run.status == 0 and run.summary["steps"] == 0
    # The file's float64 go through the network as it is built, in float32.
    assert run.evals == [pytest.approx(two["gpipe"].evals[-1], rel=1e-6)]
    again = load_file(run.path / "best.safetensors")
    for name, tensor in load_file(weights).items():
        assert torch.equal(again[name], tensor.float().to(tensor)), name

    with safe_open(run.path / "best.safetensors", "pt") as file:
        about = json.loads(file.metadata()[KEY])
    about["classes"].reverse()
    save_file(again, reordered := tmp_path / "reordered.safetensors", {KEY: json.dumps(about)})
    with pytest.raises(UserError, match="are not those of the weights"):
        alone(weights=str(reordered), eval_only=True, output_dir=str(tmp_path / "other"))


def test_weights_that_are_no_numbers_are_not_saved(alone, tmp_path) -> None:
    """Also where the losses are logged less often than the network is evaluated."""
    with pytest.raises(UserError, match=r"(loss is (nan|inf)|are not finite).* lower --lr"):
        alone(lr=1e12, max_steps=12, eval_every=1, log_every=10, double=False)
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file.name


def test_a_bad_validation_file_ends_all_stages_with_its_name(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        for kind in ("rose", "tulip"):
            (tmp_path / split / kind).mkdir(parents=True)
            for image in range(6):
                color = (number * 90, image * 40, len(kind) * 30)
                Image.new("RGB", (32, 32), color).save(tmp_path / split / kind / f"{image}.png")
    (tmp_path / "val" / "rose" / "2.png").write_bytes(b"no picture")
    options = TINY | {"dataset": "folder", "data_dir": tmp_path, "output_dir": tmp_path / "run"}
    run = launched(accelerate(2, "train_pipeline.py", *flags(**options)), tmp_path / "run")
    assert run.status != 0
    assert "rose/2.png" in "".join(run.output.splitlines()[-3:])
    assert sum("rose/2.png" in line for line in said(run)) == 1  # then the launcher's own report
    assert run.output.count("Traceback") <= 1 and run.checkpoints


def test_data_are_checked(alone, tmp_path, capsys) -> None:
    assert alone(check_data=True).status == 0
    assert "train: 24 samples, 0 bad" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_labels_are_read_at_once(alone, monkeypatch) -> None:
    """A cell at a time, those of ImageNet would take minutes."""
    keys, read = [], datasets.arrow_dataset.Column.__getitem__
    monkeypatch.setattr(
        datasets.arrow_dataset.Column,
        "__getitem__",
        lambda column, key: keys.append(key) or read(column, key),
    )
    assert alone(max_steps=0, epochs=0).status == 0
    assert len(keys) == 2 and set(map(type, keys)) == {slice}


# Cutting


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "syncbnnet_s"])
def test_the_units_of_a_network_are_its_forward(name: str) -> None:
    model = build_classification_model(name, 5, image_size=(40, 48))
    units = units_of(model)
    x = torch.rand(2, 3, 40, 48)
    stages = [Stage(units[:2]), Stage(units[2:-1]), Stage(units[-1:])]
    model.eval()
    assert torch.equal(nn.Sequential(*stages)(x), model(x))
    names = [key for stage in stages for key in stage.state_dict()]
    assert names == list(model.state_dict())


def test_costs_are_those_of_the_network() -> None:
    model = resnet50()
    costs = costs_of(units_of(model), (224, 224))
    assert sum(cost.parameters for cost in costs) == sum(p.numel() for p in model.parameters())
    # 4.09 G multiply-adds: torchvision's documentation of resnet50.
    assert sum(cost.compute for cost in costs) == pytest.approx(2 * 4.09e9, rel=0.01)
    assert costs[0].shape == (64, 56, 56) and costs[-2].shape == (2048,)
    assert next(model.parameters()).device.type == "cpu" and model.training


def test_no_other_cut_has_a_lighter_heaviest_stage() -> None:
    weights = [3, 1, 4, 1, 5, 9, 2, 6]
    for stages in range(1, 9):
        starts = cut_evenly(weights, stages)
        heaviest = [
            max(sum(weights[a:b]) for a, b in zip((0, *cut), (*cut, 8), strict=True))
            for cut in combinations(range(1, 8), stages - 1)
        ]
        mine = [sum(weights[a:b]) for a, b in zip(starts, [*starts[1:], 8], strict=True)]
        assert len(starts) == stages and max(mine) == min(heaviest)


def test_names_say_where_to_cut() -> None:
    units = units_of(resnet50())
    assert cut_at(units, ["layer3"]) == cut_at(units, ["layer3.0"]) == [0, 8]
    assert cut_at(units, ["layer1", "layer4.1", "fc"]) == [0, 1, 15, 17]


# Batches


@pytest.mark.parametrize("replicas", [1, 2])
def test_pipelines_together_have_the_micro_batches_of_one(replicas: int) -> None:
    class Counted(torch.utils.data.Dataset):
        def __getitem__(self, key: SampleKey | int) -> dict:
            number = key.index if isinstance(key, SampleKey) else key
            return {"image": torch.full((3, 1, 1), number, dtype=torch.uint8)}

    def batches(val_labels: torch.Tensor) -> list[PipelineBatches]:
        made = []
        for replica in range(replicas):
            place = Place(1, replicas, 0, replica, None, None, None)
            keys = PipelineKeys(stream, place, 12, 3, start=1, stop=4)
            train, val = (Counted(), labels, keys), (Counted(), val_labels)
            made.append(PipelineBatches(*train, *val, place, Loading(0, False), (1, 1)))
        return made

    labels, stream = torch.arange(20), SampleStream(20, 0)
    both = batches(labels)
    for step, parts in enumerate(zip(*(each.train() for each in both), strict=True), start=1):
        for images, truth in parts:
            assert torch.equal(images[:, 0, 0, 0].long(), truth)
        whole = torch.cat([truth.view(3, -1) for _, truth in parts], dim=1)
        assert whole.flatten().tolist() == stream.step_indices(step, 12)
    assert step == 3

    parts = [labels for each in both for _, labels in each.validation(pytest.fail)]
    seen = torch.cat(parts).tolist()
    assert sorted(seen) == list(range(20))
    whole = [images for each in both for images, _ in each.validation(pytest.fail)]
    assert all(len(images) == 12 // replicas for images in whole)

    # Fewer samples than pipelines.
    assert sum(len(list(each.validation(pytest.fail))) for each in batches(labels[:1])) == 1


# Mistakes


@pytest.mark.parametrize(
    "options, processes, part",
    [
        ({"stages": 2}, 3, "3 processes can't form pipelines of 2 stages: launch 2"),
        ({"split_at": "layer3"}, 1, "1 process can't form pipelines of 2 stages"),
        ({"batch_size": 30}, 2, "--batch_size 30 does not divide .*; use 28 or 32"),
        ({"batch_size": 3, "stages": 1}, 2, "2 pipelines x 4 micro-batches; use 8"),
        ({"schedule": "1f1b", "microbatches": 1}, 2, "use --microbatches 2"),
    ],
)
def test_processes_and_samples_must_divide(options: dict, processes: int, part: str) -> None:
    with pytest.raises(UserError, match=part):
        PipelineOptions(**options).check_launch(processes, on_cpu=True, precision="no")


@pytest.mark.parametrize("names", [["layer5"], ["conv1"], ["layer4", "layer3"], ["layer3"] * 2])
def test_a_wrong_place_to_cut_is_told(names: list[str]) -> None:
    with pytest.raises(UserError, match="layer3"):
        cut_at(units_of(resnet50()), names)


def test_networks_that_cannot_be_cut_are_told() -> None:
    with pytest.raises(UserError, match="SqueezeNet can't be cut"):
        units_of(build_classification_model("squeezenet1_1", 3))
    with pytest.raises(UserError, match="5 pieces can't be cut into 6 stages"):
        cut_network(SyncBNNet(3), (32, 32), stages=6)


def test_options_are_read_and_checked() -> None:
    options = parse(PipelineOptions, "", ["--split_at", "layer2, layer4", "--no_double"])
    assert options.cuts == ["layer2", "layer4"] and not options.double
    assert parse(PipelineOptions, "", ["--split_at=[layer2, layer4]"]).cuts == options.cuts
    with pytest.raises(UserError, match="makes 2 stages, not 3"):
        parse(PipelineOptions, "", ["--split_at=layer3", "--stages=3"])
    with pytest.raises(UserError, match="fp16 needs one loss scale for all stages"):
        PipelineOptions().check_launch(2, on_cpu=False, precision="fp16")
