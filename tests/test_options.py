"""Options: what is read, and what is said of a mistake."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from engine.command_line import parse
from engine.plan import make_plan
from engine.run_folder import RunFolder
from errors import UserError
from tasks.segmentation.options import SegmentationOptions as Options
from tests.conftest import ROOT, write_recipe


def read(*args: str) -> Options:
    return parse(Options, "", list(args))


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "a.yaml", lr=0.5, batch_size=3, compile=True)
    options = read("--config", recipe, "--lr", "0.25", "--no_channels_last")
    assert (options.lr, options.batch_size, options.compile) == (0.25, 3, True)
    assert options.channels_last is False


def test_a_written_file_repeats_the_run(tmp_path: Path) -> None:
    options = read("--lr", "0.125", "--crop_size", "[64, 96]", "--class_weights", "[1, 2.5]")
    folder = RunFolder(tmp_path, resume=False)
    options.resume = "auto"
    folder.write_options(options)
    again = read("--config", str(tmp_path / "config.yaml"))
    assert again == replace(options, output_dir=str(tmp_path), resume="never")
    assert read("--config", str(tmp_path / "config.yaml"), "--lr", "1").crop_size == [64, 96]


def test_a_list_needs_no_brackets() -> None:
    options = read("--crop_size", "64", "96", "--lr", "1", "--class_weights", "1", "2.5")
    assert (options.crop_size, options.class_weights) == ([64, 96], [1, 2.5])
    assert read("--crop_size", "[64,96]", "--scale_range=[1,2]").scale_range == [1, 2]


@pytest.mark.parametrize(
    "args, part",
    [
        (["--batchsize", "4"], "--batch_size"),
        (["--learning"], "unknown option"),
        (["--lr", "fast"], "--lr is fast; give a number."),
        (["--batch_size", "1.5"], "--batch_size is 1.5; give a whole number."),
        (["--deterministic", "abc"], "--deterministic is 'abc'; give true or false."),
        (["--norm", "batch"], "--norm is batch; give one of auto, bn, sync_bn,"),
        (["--batch_size", "0"], "at least 1"),
        (["--ema", "1.5"], "below 1"),
        (["--lr", ".inf"], "--lr is inf; give a finite number"),
        (["--weight_decay", ".nan"], "--weight_decay is nan"),
        (["--scale_range", "1", "1e999"], "--scale_range is [1.0, inf]"),
        (["--crop_size", "[8]"], "2 values"),
        (["--crop_size", "[4, 4]"], "value 1 must be at least 16"),
        (["--class_weights", "balanced"], "median_frequency"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["stray"], "stray"),
        (["--epochs", "0"], "--max_steps"),
        (["--class_weights", "[0, 0]"], "--class_weights"),
        (["--class_weights", "1", "-1"], "--class_weights"),
        (["--class_weights", "[]"], "--class_weights"),
        (["--eval_tile", "16"], "at least 32"),
        (["--norm", "bn", "--sync_bn_group_size", "2"], "--sync_bn_group_size 2"),
        (["--num_workers", "1000000"], "at most 1024"),
        (["--image_size", "64", "64", "--dataset", "camvid"], "--image_size"),
        (["--mask_column", "mask", "--dataset", "folder"], "--mask_column"),
        (["--data_dir", "somewhere"], "--data_dir"),
        (["--config", sys.executable], sys.executable),
        (["--eval_only", "--weights", "backbone"], "whole model"),
    ],
)
def test_a_mistake_is_one_sentence(args: list[str], part: str) -> None:
    with pytest.raises(UserError) as error:
        read(*args)
    message = str(error.value)
    assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("text, part", [("lrr: 1", "--lr"), ("lr: [", "config"), ("3", "")])
def test_a_bad_file_is_one_sentence(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read("--config", str(tmp_path / "bad.yaml"))
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_help_needs_no_torch() -> None:
    code = "import sys, runpy; sys.argv = ['train_segmentation.py', '--help']\n"
    code += "try: runpy.run_path('train_segmentation.py', run_name='__main__')\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--sync_bn_impl" in done.stdout
    assert done.stdout.endswith("False\n")


def test_print_config_prints_what_a_file_may_hold() -> None:
    command = [sys.executable, "train_segmentation.py", "--lr", "0.5", "--print_config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["lr"] == 0.5


def test_global_batch_is_divided() -> None:
    options = Options(global_batch_size=16, grad_accum=2)
    assert [options.samples_per_process(n) for n in (1, 2, 4)] == [8, 4, 2]
    with pytest.raises(UserError, match="use 12 or 18"):
        options.samples_per_process(3)
    with pytest.raises(UserError, match="use 32"):
        options.samples_per_process(16)


def test_plan_counts_steps_over_all_processes() -> None:
    plan = make_plan(Options(epochs=2, batch_size=4, grad_accum=2), 100, 3)
    assert (plan.global_batch_size, plan.total_steps, plan.eval_every) == (24, 9, 4)
    assert make_plan(Options(max_steps=7), 100, 1).total_steps == 7
    scaled = make_plan(Options(lr=0.1, scale_lr=16, batch_size=4), 100, 8)
    assert scaled.peak_lr == pytest.approx(0.2)


def test_scripts_without_a_run_have_fewer_paths(monkeypatch) -> None:
    from inference.options import PredictOptions

    monkeypatch.setenv("HOME", "/home/me")
    given = parse(PredictOptions, "", ["--weights=~/w", "--input=a", "--output=~/out"])
    assert given.weights == "/home/me/w" and given.output == "/home/me/out"
