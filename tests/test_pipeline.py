"""train_pipeline.py: a network cut over processes trains as the uncut one does."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

import train_pipeline
from data.stream import SampleStream
from engine.options import parse
from errors import UserError
from models.classification import build_classification_model
from models.syncbnnet import SyncBNNet
from pipeline.batches import PipelineBatches, Share
from pipeline.cut import Stage, costs_of, cut_at, cut_evenly, units_of
from pipeline.schedule import ideal_bubble
from tests.conftest import Run, accelerate, launched
from train_pipeline import Options

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

# Options of the runs on 2 processes, by name; "alone" has one process for each.
TWO = {
    "gpipe": {"num_workers": 1, "eval_every": 2},
    "1f1b": {"schedule": "1f1b", "split_at": "backbone.stages.1"},
    "naive": {"microbatches": 1},
    "replicas": {"stages": 1},
    "resnet": {"model": "resnet18", "split_at": ["layer4.1"], "limit_train": 8, "max_steps": 2},
    "bf16": {"double": False},
}
FOUR = {
    "2x2": {"stages": 2, "schedule": "1f1b"},
    "4": {"microbatches": 4, "schedule": "1f1b", "balance": "compute"},
}


def settings(path: Path, name: str, **options: object) -> list:
    environment = {"ACCELERATE_MIXED_PRECISION": "bf16" if name == "bf16" else "no"}
    return [TINY | {"output_dir": str(path)} | options, environment]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


def launch(folder: Path, command: list[str], runs: dict[str, dict]) -> dict[str, Run]:
    todo = [settings(folder / name, name, **options) for name, options in runs.items()]
    done = launched([*command, "tests/pipeline_worker.py", json.dumps(todo)], folder, timeout=120)
    assert done.status == 0, done.output
    return {name: Run(folder / name, 0, done.output) for name in runs}


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Run]:
    return launch(folder, accelerate(2), TWO)


@pytest.fixture(scope="module")
def four(folder: Path) -> dict[str, Run]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=4"]
    return launch(folder, [*torchrun, "--standalone"], FOUR)


def train_uncut(options: Options) -> tuple[nn.Module, list[float], dict[str, float]]:
    """The same training written down plainly: the model, its losses and its final metrics."""
    data = train_pipeline.load_data(options)
    size = (options.image_size, options.image_size)
    torch.manual_seed(options.seed)
    model = build_classification_model(options.model, len(data.classes), image_size=size).double()
    optimizer = torch.optim.SGD(
        param_groups_weight_decay(model, options.weight_decay),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=True,
    )
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps)
    mean, std = 255 * torch.tensor(train_pipeline.IMAGENET, dtype=torch.float64)[..., None, None]

    def batch(dataset: train_pipeline.ClassificationDataset, keys: list) -> tuple:
        samples = [dataset[key] for key in keys]
        images = torch.stack([(sample["image"].double() - mean) / std for sample in samples])
        return images, torch.tensor([sample["label"] for sample in samples])

    dataset = train_pipeline.ClassificationDataset(
        data.train, data, train_pipeline.train_transform(size), options.seed
    )
    stream, losses = SampleStream(len(dataset), options.seed), []
    for step in range(options.max_steps):
        first = step * options.batch_size
        images, labels = batch(dataset, [stream[first + n] for n in range(options.batch_size)])
        parts = [tensor.chunk(options.microbatches) for tensor in (images, labels)]
        losses_of_parts = [F.cross_entropy(model(x), y) for x, y in zip(*parts, strict=True)]
        loss = torch.stack(losses_of_parts).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())

    model.eval()
    dataset = train_pipeline.ClassificationDataset(
        data.val, data, train_pipeline.eval_transform(size), options.seed
    )
    images, labels = batch(dataset, [(0, index) for index in range(len(dataset))])
    with torch.no_grad():
        logits = model(images)
    return (
        model,
        losses,
        {
            "top1": (logits.argmax(1) == labels).double().mean().item(),
            "loss": F.cross_entropy(logits, labels).item(),
            "top5": (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item(),
        },
    )


def options_of(run: Run) -> Options:
    return Options(**yaml.safe_load((run.path / "config.yaml").read_text()))


def assert_trained_as_uncut(run: Run) -> None:
    model, losses, metrics = train_uncut(options_of(run))
    assert run.losses == pytest.approx(losses, rel=1e-9)
    assert run.evals[-1] == pytest.approx(metrics, rel=1e-9)
    weights = load_file(run.path / "last.safetensors")
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", [name for name in TWO if name != "bf16"])
def test_two_processes_train_as_the_uncut_network(two: dict[str, Run], name: str) -> None:
    assert_trained_as_uncut(two[name])


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_as_the_uncut_network(four: dict[str, Run], name: str) -> None:
    assert_trained_as_uncut(four[name])
    assert four[name].summary["replicas"] == {"2x2": 2, "4": 1}[name]
    assert four[name].summary["norm"]["kind"] == {"2x2": "sync_bn", "4": "bn"}[name]


def test_bfloat16_trains_nearly_the_same(two: dict[str, Run]) -> None:
    _, losses, _ = train_uncut(options_of(two["bf16"]))
    assert two["bf16"].losses != pytest.approx(losses, rel=1e-5)
    assert two["bf16"].losses == pytest.approx(losses, rel=0.05)


def test_the_files_of_a_run(two: dict[str, Run]) -> None:
    run = two["gpipe"]
    assert {path.name for path in run.path.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "best.safetensors",
        "last.safetensors",
        "tensorboard",
    }
    assert [line["step"] for line in run.steps] == [1, 2, 3] and len(run.evals) == 2
    assert [line["samples"] for line in run.steps] == [8, 16, 24]
    summary = run.summary
    expected = {"task": "pipeline", "world_size": 2, "replicas": 1, "steps": 3}
    assert summary.items() >= expected.items()
    assert summary["metrics"]["last"] == run.evals[-1]
    best = max(line["top1"] for line in run.evals)
    assert summary["metrics"]["best"]["top1"] == best
    first, second = summary["stages"]
    assert first["first"] == "backbone.stem" and second["last"] == "head"
    assert first["parameters"] + second["parameters"] == pytest.approx(1)
    assert first["compute"] + second["compute"] == pytest.approx(1)


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


@pytest.fixture
def alone(tmp_path: Path) -> Iterator:
    """Run the script in this process, as ``python train_pipeline.py`` does."""

    def run(**options: object) -> Run:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        parsed = Options(**TINY | {"output_dir": str(tmp_path / "run")} | options)
        parsed.check()
        return Run(tmp_path / "run", train_pipeline.main(parsed))

    yield run
    if dist.is_initialized():
        dist.destroy_process_group()


def test_one_process_is_one_stage_and_loads_the_weights_of_several(two, alone) -> None:
    run = alone(weights=str(two["gpipe"].path / "last.safetensors"), max_steps=0, epochs=0)
    assert run.status == 0 and run.summary["steps"] == 0
    # The file's float64 go through the network as it is built, in float32.
    assert run.evals == [pytest.approx(two["gpipe"].evals[-1], rel=1e-6)]
    again = load_file(run.path / "best.safetensors")
    for name, tensor in load_file(two["gpipe"].path / "last.safetensors").items():
        assert torch.equal(again[name], tensor.float().to(tensor)), name


def test_weights_that_are_no_numbers_are_not_saved(alone, tmp_path) -> None:
    """Neither where the losses are logged more seldom than the network is evaluated."""
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+: lower --lr"):
        alone(lr=1e12, max_steps=12, eval_every=1, log_every=10, double=False)
    for file in (tmp_path / "run").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file.name


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
    from itertools import combinations

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
        def __getitem__(self, key: tuple[int, int]) -> dict:
            return {"image": torch.full((3, 1, 1), key[1], dtype=torch.uint8)}

    labels, size = torch.arange(20), 12 // replicas
    shares = [Share(r, replicas, size, 3, pictures=True, labels=True) for r in range(replicas)]
    batches = [
        PipelineBatches(Counted(), labels, Counted(), labels, share, 0, 4, 0, False)
        for share in shares
    ]
    stream = SampleStream(20, 0)
    for step, parts in enumerate(zip(*(each.train() for each in batches), strict=True)):
        for images, truth in parts:
            assert torch.equal(images[:, 0, 0, 0].long(), truth)
        whole = torch.cat([truth.view(3, -1) for _, truth in parts], dim=1)
        assert whole.flatten().tolist() == stream.step_indices(step, 12)

    seen = [label for each in batches for _, part in each.validation() for label in part.tolist()]
    assert sorted(seen) == list(range(20))
    assert all(len(images) == size for each in batches for images, _ in each.validation())

    # Fewer samples than pipelines.
    few = [
        PipelineBatches(Counted(), labels, Counted(), labels[:1], s, 0, 4, 0, False) for s in shares
    ]
    assert sum(len(list(each.validation())) for each in few) == 1


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
        train_pipeline.count_stages(Options(**options), processes)


@pytest.mark.parametrize("names", [["layer5"], ["conv1"], ["layer4", "layer3"], ["layer3"] * 2])
def test_a_wrong_place_to_cut_is_told(names: list[str]) -> None:
    with pytest.raises(UserError, match="layer3"):
        cut_at(units_of(resnet50()), names)


def test_networks_that_cannot_be_cut_are_told() -> None:
    with pytest.raises(UserError, match="--model squeezenet1_1 can't be cut"):
        units_of(build_classification_model("squeezenet1_1", 3), "--model squeezenet1_1")
    with pytest.raises(UserError, match="5 pieces can't be cut into 6 stages"):
        cut_evenly([cost.parameters for cost in costs_of(units_of(SyncBNNet(3)), (32, 32))], 6)


def test_another_run_is_not_overwritten(two, alone) -> None:
    with pytest.raises(UserError, match="holds another run"):
        alone(output_dir=str(two["gpipe"].path))


def test_options_are_read_and_checked() -> None:
    options = parse(Options, "", ["--split_at", "layer2, layer4", "--no_double"])
    assert options.cuts == ["layer2", "layer4"] and not options.double
    assert parse(Options, "", ["--split_at=[layer2, layer4]"]).cuts == options.cuts
    with pytest.raises(UserError, match="--microbatches is 0"):
        parse(Options, "", ["--microbatches=0"])
    with pytest.raises(UserError, match="--momentum is inf"):
        parse(Options, "", ["--momentum=.inf"])
    with pytest.raises(UserError, match="makes 2 stages, not 3"):
        parse(Options, "", ["--split_at=layer3", "--stages=3"])


def test_more_processes_than_gpus_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched on a machine with 1 GPU"):
        train_pipeline.main(Options())
