"""Using trained weights: what a file says of itself, predict.py, tiles, averaging, sharing."""

import csv
import importlib.util
import json
import shlex
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from torch import nn

import export
import predict
from data.faults import Faults
from data.on_disk import PictureOnDisk
from data.tiles import Tiles, Window
from engine.about import KEY, read_about
from engine.command_line import parse
from engine.inference import set_eps, unusual_eps
from errors import UserError
from exporting.options import ExportOptions
from inference.averaging import Averaged, averaged
from inference.files import FileSource
from inference.inputs import out_names
from inference.options import PredictOptions
from inference.output import read_records
from inference.tasks import options_class, with_options
from inference.trained import load_trained
from models.classification import build_classification_model
from tasks.detection.formats.coco import load_coco
from tasks.detection.formats.voc import load_voc
from tasks.detection.formats.yolo import load_yolo
from tasks.detection.options import DetectionOptions
from tasks.detection.tiles import merged
from tasks.segmentation.loss import dice_counts, dice_of_counts, dice_sum
from tasks.segmentation.options import SegmentationOptions
from tasks.segmentation.tiles import blended
from tests.conftest import ROOT, Run, accelerate, launched, train_here
from tests.table import SCRIPTS

TASKS = {row.task: script for script, row in SCRIPTS.items()}
ONNX = ("onnx", "onnxscript", "onnxruntime")
PICTURE_TASKS = ("segmentation", "detection", "classification")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A tiny run of each script."""
    folder = tmp_path_factory.mktemp("runs")
    return {task: train_here(script, folder / task) for task, script in TASKS.items()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of good pictures of all kinds, one that is broken, and something else."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    rgb = rng.integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(rgb).save(folder / "plain.jpg")
    Image.fromarray(rgb[:30]).save(folder / "sub" / "plain.png")
    Image.fromarray(rgb[:1, :1]).save(folder / "one_pixel.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (33, 20, 4), np.uint8), "RGBA").save(folder / "alpha.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.md").write_text("left out")
    return folder


def predicted(out: Path, weights: Path, **options: object) -> tuple[int, list[dict]]:
    """Run predict.py in this process; its exit status and its lines."""
    AcceleratorState._reset_state(reset_partial_state=True)
    given = {"num_workers": 0, "weights": str(weights), "output": str(out)} | options
    parsed = PredictOptions(**given)
    parsed.check()
    status = predict.main(parsed)
    return status, [record for _, record in read_records(out / "predictions.jsonl")]


def table_of(out: Path) -> list[dict[str, str]]:
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", TASKS)
def test_weights_say_what_they_are(runs, task) -> None:
    path = runs[task].path / "best.safetensors"
    about = read_about(path)
    assert about.task == task and about.metrics == runs[task].evals[-1]
    tiny = SCRIPTS[TASKS[task]].tiny
    assert all(value == about.options[k] for k, value in tiny.items() if k in about.options)
    with safe_open(path, "pt") as file:
        assert str(runs[task].path) not in json.dumps(file.metadata())
        assert json.loads(file.metadata()[KEY])["classes"] == about.classes
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    plain = load_trained(path).inference.build_model()
    assert plain.load_state_dict(state)  # every key, and no other


@pytest.mark.parametrize("task", TASKS)
def test_prediction_is_what_was_scored(runs, task, tmp_path: Path) -> None:
    tiny = SCRIPTS[TASKS[task]].tiny
    names = ("limit_val", "limit_train")
    data = [f"{k}={json.dumps(v)}" for k, v in tiny.items() if k in names]
    status, records = predicted(
        tmp_path / "out", runs[task].path, dataset="synthetic", data_options=data, batch_size=2
    )
    assert status == 0 and len(records) == 5
    scored = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    trained = runs[task].evals[-1]
    assert SCRIPTS[TASKS[task]].metrics - {"loss"} <= set(scored)
    assert scored == pytest.approx({name: trained[name] for name in scored}, abs=1e-6)


@pytest.mark.parametrize("task", PICTURE_TASKS)
def test_every_picture_has_a_line_and_bad_ones_a_reason(runs, task, pictures, tmp_path) -> None:
    out, options = tmp_path / "out", {"input": str(pictures), "save": ["pictures"]}
    status, _ = predicted(out, runs[task].path, **options)
    rows = {row["input"]: row for row in table_of(out)}
    assert status == 1 and len(rows) == 6
    bad = [name for name, row in rows.items() if row["status"] == "failed"]
    assert bad == ["broken.jpg"] and "not an image" in rows["broken.jpg"]["reason"]
    drawn = {p.relative_to(out / "pictures").as_posix() for p in (out / "pictures").rglob("*.*")}
    assert {"plain.jpg", "sub/plain.png", "one_pixel.png", "deep.png", "alpha.png"} == drawn


def test_going_on_with_what_failed(runs, pictures, tmp_path) -> None:
    out, weights = tmp_path / "out", runs["classification"].path
    options = {"input": str(pictures), "save": ["pictures"]}
    predicted(out, weights, **options)
    with pytest.raises(UserError, match="skip_done"):
        predicted(out, weights, **options)
    Image.new("RGB", (50, 40)).save(pictures / "broken.jpg")
    before = (out / "pictures" / "plain.jpg").stat().st_mtime_ns
    status, records = predicted(out, weights, skip_done=True, **options)
    assert status == 0 and len(records) == 6 and all(r["error"] is None for r in records)
    assert (out / "pictures" / "plain.jpg").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another top"):
        predicted(out, weights, skip_done=True, top=3, **options)


def test_a_killed_run_goes_on(runs, pictures, tmp_path) -> None:
    out, weights = tmp_path / "out", runs["classification"].path
    (pictures / "broken.jpg").unlink()
    _, whole = predicted(out, weights, input=str(pictures))
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").unlink()
    (out / ".part-0.jsonl").write_text(lines[1] + lines[0][:20])  # killed in a line
    status, again = predicted(out, weights, input=str(pictures), skip_done=True)
    assert status == 0 and again == whole


def test_masks_hold_ids_and_run_lengths_agree(runs, pictures, tmp_path) -> None:
    from tasks.detection.instance_masks import decode

    out, weights = tmp_path / "out", runs["segmentation"].path
    predicted(out, weights, input=str(pictures / "plain.jpg"), save=["masks", "rle"])
    expected = load_trained(weights).predict(pictures / "plain.jpg")
    with Image.open(out / "masks" / "plain.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), expected.mask.numpy())
        assert image.getpalette()[3:6] == list(load_trained(weights).inference.colors[1])
    for name, rle in json.loads((out / "rle" / "plain.json").read_text()).items():
        inside = decode([rle], tuple(expected.mask.shape))[0].bool()
        assert torch.equal(inside, expected.mask == expected.classes.index(name))


@pytest.mark.parametrize(
    "kind, load", [("coco", load_coco), ("yolo", load_yolo), ("voc", load_voc)]
)
def test_detections_can_be_trained_on(runs, kind, load, pictures, tmp_path) -> None:
    out = tmp_path / "out"
    (pictures / "one_pixel.png").unlink()  # its boxes have no area
    _, records = predicted(out, runs["detection"].path, input=str(pictures), save=[kind], score=0.0)
    names = load_trained(runs["detection"].path).classes
    options = DetectionOptions(dataset=kind, data_dir=str(out / kind), class_names=names)
    data = load(options, faults := Faults())
    faults.stop_if_any()
    found = {Path(row["image"]["path"]).stem: row["objects"] for row in data.train}
    for record in records:
        if record["error"] is None:
            name = Path(record["out"]).name
            if name != "plain":  # there are two
                objects = [e for e in record["objects"] if e["box"][2] - e["box"][0] > 1e-3]
                boxes = np.array([each["box"] for each in objects]).reshape(-1, 4)
                boxes[:, 2:] -= boxes[:, :2]
                kept = np.array(found[name]["bbox"]).reshape(-1, 4)
                assert len(kept) and kept == pytest.approx(boxes[: len(kept)], abs=1e-3)
                assert found[name]["category"] == [e["label"] for e in objects][: len(kept)]
    assert len(data.train) == 4


def test_videos(runs, tmp_path) -> None:
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for number in range(30):
            pixels = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    (tmp_path / "empty.mp4").write_bytes(b"")
    _, records = predicted(tmp_path / "a", runs["detection"].path, input=str(path), max_frames=7)
    assert records[0]["frames"] == 7
    with av.open(str(tmp_path / "a" / "pictures" / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 7
    (tmp_path / "frames").mkdir()
    for number in range(9):
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(tmp_path / f"frames/{number}.png")
    several = [str(path), str(tmp_path / "empty.mp4"), str(tmp_path / "frames")]
    status, records = predicted(tmp_path / "b", runs["video"].path, input=several)
    assert status == 1 and records[0]["error"] is None and "empty.mp4" in records[1]["error"]
    assert records[2]["error"] is None
    whole = load_trained(runs["video"].path).predict(path)
    assert dict(records[0]["top"]) == pytest.approx(dict(whole.top(5)))
    _, records = predicted(tmp_path / "c", runs["video"].path, input=str(path), every=0.5)
    rows = (tmp_path / "c" / "curves" / "film.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 and records[0]["parts"][0]["from"] == 0


def test_two_processes_predict_what_one_does(runs, pictures, tmp_path) -> None:
    weights, out = runs["detection"].path, tmp_path / "two"
    predicted(tmp_path / "one", weights, input=str(pictures), batch_size=2)
    command = ["predict.py", f"--weights={weights}", f"--input={pictures}", f"--output={out}"]
    done = launched(accelerate(2, *command, "--batch_size=2", "--num_workers=0"), out)
    assert done.status != 0 and "5 of 6 inputs done" in done.output
    assert "2 processes share the inputs" in done.output
    for name in ("predictions.jsonl", "predictions.csv"):
        assert (out / name).read_text() == (tmp_path / "one" / name).read_text()


def test_python_takes_pictures_in_any_form(runs, pictures) -> None:
    model = load_trained(runs["segmentation"].path)
    image = Image.open(pictures / "sub" / "plain.png")
    array = np.asarray(image)
    forms = [image, array, torch.from_numpy(array.copy()).permute(2, 0, 1), image.filename]
    masks = [model.predict(form).mask for form in forms]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    several = model.predict([pictures / "plain.jpg", *forms])
    assert [tuple(r.mask.shape) for r in several] == [(40, 56)] + [(30, 56)] * 4
    assert sum(several[0].shares.values()) == pytest.approx(1)
    half = load_trained(runs["segmentation"].path, precision="bf16").predict(image).mask
    assert (half == masks[0]).float().mean() > 0.9
    with pytest.raises(UserError, match="no picture"):
        model.predict(torch.zeros(3, 4, 5))


def test_weights_name_the_model(runs, tmp_path, capsys) -> None:
    path = str(runs["detection"].path)
    named = parse(DetectionOptions, "", [f"--weights={path}", "--hflip", "0.1"])
    assert named.model == "yolo_nano" and named.image_size == [64, 64] and named.hflip == 0.1
    assert "--image_size 64 64" in capsys.readouterr().out
    other = parse(DetectionOptions, "", [f"--weights={path}", "--model", "yolo_s"])
    assert other.model == "yolo_s" and other.image_size == [128, 128]
    with pytest.raises(UserError, match="trained for detection"):
        parse(options_class("segmentation"), "", [f"--weights={path}", "--eval_only"])


MISTAKES = [
    ({"weights": "nowhere"}, "nowhere is not a file"),
    ({"weights": "PLAIN"}, "--task, --model, --class_names"),
    ({"weights": "PLAIN", "task": "classification"}, "Give --model and --class_names too"),
    ({"input": "EMPTY"}, "There are no pictures or videos"),
    ({"input": "missing.jpg"}, "There is no missing.jpg"),
    ({"input": "none*.jpg"}, "No file has a name like"),
    ({"output": "FILE/out"}, "can't be written"),
    ({"save": ["masks"]}, "it has pictures"),
    ({"save": ["everything"]}, "--save takes"),
    ({"tile": 128}, "Tiles are for segmentation and detection"),
    ({"tta": ["rotate"]}, "--tta takes flip"),
    ({"dataset": "fake", "input": ""}, "The classes of fake are not those of the weights"),
    ({"precision": "fp16"}, "needs a GPU"),
    ({"every": 1.0}, "--every is for video"),
    ({"data_dir": "x"}, "--data_dir is for --dataset"),
    ({"split": "train"}, "--split is for --dataset"),
    ({"score": 0.5}, "--score is for detection, and not for classification"),
    ({"max_frames": 3}, "--max_frames is for videos"),
    ({"overlap": 0.5}, "give --tile too"),
    ({"model": "resnet18"}, "says itself"),
    ({"model_options": ["image_size=24,24"]}, "says itself"),
    ({"model": "lenet", "task": "classification", "class_names": "a,b"}, "says itself"),
]


@pytest.mark.parametrize("options, words", MISTAKES, ids=str)
def test_a_mistake_is_one_sentence(runs, options, words, pictures, tmp_path) -> None:
    from safetensors.torch import save_file

    plain, file, empty = tmp_path / "plain.safetensors", tmp_path / "file", tmp_path / "empty"
    save_file({"weight": torch.zeros(1)}, plain)
    file.write_text("")
    empty.mkdir()
    places = {"PLAIN": str(plain), "EMPTY": str(empty), "FILE/out": str(file / "out")}
    given = {"input": str(pictures), "weights": str(runs["classification"].path)}
    given |= {name: places.get(v, v) if isinstance(v, str) else v for name, v in options.items()}
    weights, out = given.pop("weights"), Path(given.pop("output", str(tmp_path / "out")))
    with pytest.raises(UserError) as caught:
        predicted(out, weights, **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_weights_can_be_described(runs, pictures, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    weights = runs["classification"].path
    save_file(load_file(weights / "best.safetensors"), tmp_path / "bare.safetensors")
    about = read_about(weights / "best.safetensors")
    said = {
        "task": "classification",
        "model": "syncbnnet",
        "class_names": about.classes,
        "model_options": ["image_size=24,24"],
    }
    _, mine = predicted(tmp_path / "a", weights, input=str(pictures / "plain.jpg"))
    _, bare = predicted(
        tmp_path / "b", tmp_path / "bare.safetensors", input=str(pictures / "plain.jpg"), **said
    )
    assert mine == bare


def test_inputs_are_found_and_nothing_is_lost(pictures, tmp_path, monkeypatch) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("pictures/plain.jpg\n\npictures/gone.jpg\n")
    assert [each.name for each in FileSource(str(listed), "image").inputs] == [
        "pictures/plain.jpg",
        "pictures/gone.jpg",
    ]
    found = FileSource([f"{pictures}/*.png", str(pictures / "alpha.png")], "image")
    assert len(found.inputs) == 3  # one of them by two names
    folder = FileSource(str(pictures), "image")
    assert "1 other files" in folder.notes[0]
    assert FileSource("0", "image").inputs[0].kind == "camera"
    outs = out_names(["a/x.jpg", "a/x.png", "b/x.jpg", "../up.jpg", "/up.jpg"])
    assert outs == ["a/x.jpg", "a/x.png", "b/x", "up.jpg", "up.jpg-2"]
    assert out_names(["/far/away/x.jpg"]) == ["x"]
    assert out_names(["/far/a/x.jpg", "/far/b/x.jpg"]) == ["a/x", "b/x"]
    two = FileSource([str(pictures), str(pictures / "sub"), str(pictures / "sub")], "image")
    assert len(two.inputs) == 6 and len({each.out for each in two.inputs}) == 6


@pytest.mark.parametrize("length, side, overlap", [(100, 32, 0.25), (97, 32, 0.5), (20, 32, 0.3)])
def test_tiles_cover_a_picture_with_weights_of_one(length, side, overlap) -> None:
    tiles, total = Tiles(side, overlap), torch.zeros(length, dtype=torch.float64)
    starts = tiles.starts(length)
    for start, weights in zip(starts, tiles.weights(length), strict=True):
        total[start : start + min(side, length)] += weights
    assert starts[0] == 0 and starts[-1] + min(side, length) == length
    assert total == pytest.approx(torch.ones(length, dtype=torch.float64))
    assert all(b - a <= side * (1 - overlap) + 1 for a, b in pairwise(starts))


@pytest.mark.parametrize("values", [1, 2**23])
def test_tiles_of_a_function_of_single_pixels_are_the_whole(monkeypatch, values) -> None:
    monkeypatch.setattr("tasks.segmentation.tiles.VALUES", values)  # 1: in several bands
    picture = torch.randint(0, 256, (3, 70, 150), dtype=torch.uint8)

    def logits_of(windows: torch.Tensor) -> torch.Tensor:
        return torch.stack([windows[:, 0].double(), windows[:, 1] - windows[:, 2].double()], 1)

    whole, seen = logits_of(picture[None])[0], torch.zeros(70, 150)
    for window, logits in blended(logits_of, picture, Tiles(32, 0.25), 2, 3):
        assert logits == pytest.approx(window.of(whole))
        window.of(seen).add_(1)
    assert (seen == 1).all()


def test_objects_at_seams_are_found_once() -> None:
    left, right = Window(0, 0, 100, 100), Window(0, 75, 100, 100)
    score = torch.tensor
    # A box across the seam: cut off at 100 in the one, whole in the other.
    parts = [
        (left, score([[80.0, 10, 100, 30], [5, 5, 20, 20]]), score([0.9, 0.8]), score([1, 0])),
        (right, score([[80.0, 10, 120, 30], [80, 60, 95, 70]]), score([0.7, 0.6]), score([1, 1])),
    ]
    boxes, scores, labels = merged(parts, (100, 175))
    assert boxes.tolist() == [[80, 10, 120, 30], [5, 5, 20, 20], [80, 60, 95, 70]]
    assert scores.tolist() == pytest.approx([0.9, 0.8, 0.6]) and labels.tolist() == [1, 0, 1]
    # One that is larger than a tile: around all of it.
    parts = [
        (left, score([[10.0, 10, 100, 90]]), score([0.5]), score([2])),
        (right, score([[75.0, 12, 160, 88]]), score([0.4]), score([2])),
    ]
    assert merged(parts, (100, 175))[0].tolist() == [[10, 10, 160, 90]]
    nothing = (left, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert len(merged([nothing], (100, 175))[0]) == 0


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_evaluation_in_tiles_is_what_tiles_predict(runs, task, tmp_path) -> None:
    weights = {"weights": str(runs[task].path), "eval_only": True}
    run = train_here(TASKS[task], tmp_path / "run", eval_tile=32, **weights)
    tiny = SCRIPTS[TASKS[task]].tiny
    names = ("limit_val", "limit_train")
    data = [f"{k}={json.dumps(v)}" for k, v in tiny.items() if k in names]
    options = {"dataset": "synthetic", "data_options": data, "tile": 32}
    predicted(tmp_path / "out", runs[task].path, **options)
    scored = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert scored == pytest.approx({k: run.evals[-1][k] for k in scored}, abs=1e-6)
    if task == "segmentation":  # a tile of the whole picture
        large = train_here(TASKS[task], tmp_path / "large", eval_tile=4096, **weights)
        assert large.evals[-1] == pytest.approx(runs[task].evals[-1], abs=1e-6)


def test_dice_of_parts_is_that_of_the_whole() -> None:
    logits, target = torch.randn(2, 4, 6, 8).double(), torch.randint(0, 4, (2, 6, 8))
    target[0, 0] = 255
    halves = zip(logits.split(3, 2), target.split(3, 1), strict=True)
    parts = [dice_counts(*half) for half in halves]
    counts = tuple(sum(each) for each in zip(*parts, strict=True))
    assert dice_of_counts(counts) == pytest.approx(dice_sum(logits, target))


def test_a_large_picture_is_read_from_the_disk(runs, tmp_path, monkeypatch) -> None:
    picture = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    stored = PictureOnDisk(
        (300, 400), [rows.permute(1, 2, 0).numpy() for rows in picture.split(70, 1)]
    )
    window = Window(17, 30, 200, 100)
    assert torch.equal(window.of(stored), window.of(picture))
    assert torch.equal(stored.thinned(3), picture[:, ::3, ::3])
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "large.png")
    options = {"input": str(tmp_path / "large.png"), "tile": 128}
    _, plain = predicted(tmp_path / "a", runs["segmentation"].path, **options)
    monkeypatch.setattr("data.on_disk.LARGE", 1000)
    _, other = predicted(tmp_path / "b", runs["segmentation"].path, **options)
    assert plain == other
    drawn = [tmp_path / name / "pictures" / "large.png" for name in "ab"]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()


class Brightness(nn.Module):
    """Logits that are the same for mirrored and rescaled flat pictures."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)


def test_averaging_over_copies(runs) -> None:
    flat = torch.full((2, 3, 16, 20), 0.7)
    copies = Averaged(Brightness(), "classification", True, [0.5, 1.0], 100)
    assert copies(flat).softmax(1) == pytest.approx(Brightness()(flat).softmax(1))
    model = load_trained(runs["detection"].path)
    image = torch.rand(1, 3, 64, 64)
    symmetric = torch.cat([image[..., :32], image[..., :32].flip(-1)], -1)
    (found,) = Averaged(model.network, "detection", True, [1.0], 100)(symmetric)
    boxes = found["boxes"][:20]
    x0, y0, x1, y1 = boxes.unbind(1)
    mirrored = torch.stack([64 - x1, y0, 64 - x0, y1], 1)
    gaps = (mirrored[:, None] - found["boxes"][None]).abs().amax(2).amin(1)
    assert (gaps < 1e-3).float().mean() > 0.8  # of a symmetric picture, the objects are symmetric
    with pytest.raises(UserError, match="without mirrored"):
        averaged(model.network, replace(model.about, options={"hflip": 0.0}), ["flip"])


def test_epsilons_are_part_of_a_file() -> None:
    model = build_classification_model("timm/test_efficientnet", 3)
    unusual = unusual_eps(model)
    other = build_classification_model("timm/test_efficientnet", 3)
    set_eps(other, {})
    assert not unusual_eps(other)
    set_eps(other, unusual)
    assert unusual_eps(other) == unusual


def test_group_norm_comes_back(tmp_path) -> None:
    run = train_here("train_classification", tmp_path / "run", norm="group_norm")
    model = load_trained(run.path)
    assert model.about.norm == "group_norm"
    assert any(isinstance(module, nn.GroupNorm) for module in model.network.modules())
    assert with_options("classification", model.about.options | {"unknown": 1}).model == "syncbnnet"
    assert asdict(model.about)["metrics"] == run.evals[-1]


def test_the_way_in_six_lines(tmp_path, monkeypatch) -> None:
    """README's commands from own pictures to predictions, each as it stands there."""
    text = (ROOT / "README.md").read_text()
    block = text.partition("<!-- six lines -->")[2].partition("<!-- end -->")[0]
    lines = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    assert len(lines) == 6
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            for kind in ("images", "masks"):
                folder = tmp_path / "my_pictures" / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                shape = (48, 64, 3) if kind == "images" else (48, 64)
                pixels = rng.integers(0, 256 if kind == "images" else 3, shape, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "new_pictures").mkdir()
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(
        tmp_path / "new_pictures/a.jpg"
    )
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "python"
        module = importlib.import_module(words.pop(0).removesuffix(".py"))
        kind = {predict: PredictOptions, export: ExportOptions}.get(module, SegmentationOptions)
        if module is export and not all(map(importlib.util.find_spec, ONNX)):
            break
        trains = module is not predict and module is not export
        fast = ["--max_steps=2", "--num_workers=0"] if trains else []
        AcceleratorState._reset_state(reset_partial_state=True)
        assert module.main(parse(kind, "", [*words, *fast])) == 0, line
    assert (tmp_path / "out/new/masks/a.png").exists()
    assert json.loads((tmp_path / "out/scored/metrics.json").read_text())["inputs"] == 2
