"""Exported files compute what the network computes, or are not kept."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exporting.write
from errors import UserError
from exporting.check import difference_of_objects, largest_difference
from exporting.folding import fold_batch_norm
from exporting.forms import best_objects
from exporting.layers import watched
from exporting.options import ExportOptions
from exporting.write import export
from inference.onnx_network import as_detections
from inference.trained import load_trained
from models.yolo import select_detections
from tests.conftest import Run, train_here

ONNX = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny classifier."""
    return train_here("train_classification", tmp_path_factory.mktemp("export") / "run")


class Layers(nn.Module):
    """Convolutions that may be folded, and some that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.shared, self.norm_two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.read_twice, self.norm_three = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_one(self.one(x)).relu()
        x = self.norm_two(self.shared(self.shared(x)))
        y = self.read_twice(x)
        return self.norm_three(y) + y


def test_batch_norm_is_folded_only_where_nothing_changes() -> None:
    torch.manual_seed(0)
    model, images = Layers().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        model(images)
    model.eval()
    folded, count = fold_batch_norm(model, torch.export.export(model, (images,)))
    assert count == 1 and isinstance(folded.norm_one, nn.Identity)
    assert isinstance(folded.norm_two, nn.BatchNorm2d) and isinstance(
        model.norm_one, nn.BatchNorm2d
    )
    torch.testing.assert_close(folded(images), model(images))


def test_objects_of_fixed_shapes_are_the_selected_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 60 * torch.rand(400, 2, generator=generator)
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(400, 2, generator=generator)], 1)
    scores = torch.rand(400, 3, generator=generator) ** 4
    for most, threshold in ((100, 0.001), (20, 0.3), (100, 0.999)):
        limits = {"max_detections": most, "score_threshold": threshold}
        wanted = select_detections(boxes, scores, (64, 64), **limits)
        outputs = list(best_objects(boxes, scores, (64, 64), threshold, most))
        assert outputs[0].shape == (1, most, 4)
        (found,) = as_detections(outputs, (64, 64), threshold, most)
        for name, values in wanted.items():
            assert torch.equal(found[name], values)


def test_differences_are_seen() -> None:
    one = torch.tensor([1.0, 100.0])
    assert largest_difference([one], [one + torch.tensor([0, 1.0])]) == pytest.approx(0.01)
    assert largest_difference([one], [one[:1]]) == float("inf")
    assert largest_difference([one], [one * float("nan")]) == float("inf")
    found = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]]),
        "scores": torch.tensor([0.9, 0.9]),
        "labels": torch.tensor([1, 0]),
    }
    turned = {name: values.flip(0) for name, values in found.items()}
    assert difference_of_objects(found, turned) == 0
    moved = found | {"boxes": found["boxes"] + 1}
    assert difference_of_objects(found, moved) == pytest.approx(0.1)
    assert difference_of_objects(found, found | {"labels": torch.tensor([1, 1])}) == float("inf")
    fewer = {name: values[:1] for name, values in found.items()}
    assert difference_of_objects(found, fewer) >= 0.9


def test_torch_export_is_checked_and_complete(run, tmp_path) -> None:
    options = ExportOptions(
        str(run.path), "torch_export", str(tmp_path / "model.pt2"), input_type="uint8"
    )
    model = load_trained(run.path)
    made = export(model, options)
    assert made.folded == 10 and made.dynamic == ["batch"] and len(made.lines()) == 4
    stored = {"trained": "", "form": ""}
    program = torch.export.load(made.path, extra_files=stored).module()
    assert json.loads(stored["trained"])["classes"] == model.classes
    images = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    expected = model.network(model.inference.scaled(images))
    torch.testing.assert_close(program(images), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="--overwrite"):
        export(model, options)


def test_a_file_that_differs_is_not_kept(run, tmp_path, monkeypatch) -> None:
    def wrong(model: nn.Module, program: object) -> tuple[nn.Module, int]:
        changed, count = fold_batch_norm(model, program)
        for parameter in changed.parameters():
            parameter.data.mul_(1.5)
        return changed, count

    monkeypatch.setattr(exporting.write, "fold_batch_norm", wrong)
    options = ExportOptions(str(run.path), "torch_export", str(tmp_path / "model.pt2"))
    with pytest.raises(UserError, match="computes something else"):
        export(load_trained(run.path), options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named(run, tmp_path) -> None:
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[: int(x.sum().item())] if x.sum() > 0 else x

    model = load_trained(run.path)
    name = next(name for name, m in model.network.named_modules() if isinstance(m, nn.SiLU))
    model.network.set_submodule(name, Counts())
    options = ExportOptions(str(run.path), "torch_export", str(tmp_path / "model.pt2"))
    with pytest.raises(UserError, match=f"at its layer {name}"):
        export(model, options)
    with watched(model.network) as layer:
        assert str(layer) == "the network itself"


@pytest.mark.parametrize("input_type", ["float", "uint8"])
def test_onnx_predicts_the_same(run, input_type, tmp_path: Path) -> None:
    for package in ONNX:
        pytest.importorskip(package)
    path = tmp_path / "model.onnx"
    made = export(
        load_trained(run.path), ExportOptions(str(run.path), "onnx", str(path), input_type)
    )
    assert made.dynamic == ["batch"] and max(made.differences.values()) < 1e-4
    eager, exported = load_trained(run.path), load_trained(path)
    assert exported.about == eager.about and exported.network.bytes_in == (input_type == "uint8")
    pictures = [
        np.random.default_rng(n).integers(0, 256, (40, 30 + n, 3), np.uint8) for n in range(3)
    ]
    for mine, theirs in zip(eager.predict(pictures), exported.predict(pictures), strict=True):
        torch.testing.assert_close(mine.probabilities, theirs.probabilities, atol=1e-5, rtol=1e-4)


def test_a_missing_package_is_one_sentence(run, tmp_path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    options = ExportOptions(str(run.path), "onnx", str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="pip install -r requirements-export"):
        export(load_trained(run.path), options)
