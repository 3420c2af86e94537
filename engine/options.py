"""Options: typed dataclasses, read from the command line and from recipe files.

Nothing here imports torch, so ``--help`` answers at once and a mistyped option is refused before
the slow imports begin.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from functools import partial
from typing import Literal

from engine.fields import (
    Options,
    augmentation_option,
    data_option,
    default_of,
    evaluation_option,
    length_option,
    model_option,
    norm_option,
    optimisation_option,
)
from errors import UserError

# Options that name a file or folder.
FILES = ("data_dir", "weights", "output_dir", "resume")

# Values of --dataset that need no folder: what is made here, or named by --dataset alone.
WITHOUT_FOLDER = ("synthetic", "fake", "hub")

# Values of --dataset for data that may come without a validation split.
ONE_FOLDER = (
    "folder",
    "csv",
    "coco",
    "voc",
    "yolo",
    "labelme",
    "datumaro",
    "kinetics",
    "list",
    "hub",
)

MOST_STEPS = 99_999_999
MOST_SAMPLES = 1_000_000  # of a batch
SMALLEST_TILE = 32  # pixels


@dataclass
class CommonOptions(Options):
    """The options of every training script."""

    dataset: str = data_option("synthetic", "data source; docs/data.md lists them")
    data_dir: str | None = data_option(None, "folder of the data set", resume="free")
    limit_train: int = data_option(
        0, "use only this many training samples, evenly spaced (0: all)", at_least=0
    )
    limit_val: int = data_option(
        0, "use only this many validation samples, evenly spaced (0: all)", at_least=0
    )
    val_share: float | None = data_option(
        None,
        "share held out to validate, where there is no split val",
        above=0,
        below=1,
        datasets=ONE_FOLDER,
    )
    fold: str | None = data_option(
        None, "instead of a share, validate on one of several parts, e.g. 2/5", datasets=ONE_FOLDER
    )
    val_group: str | None = data_option(
        None,
        "regular expression: files in which it matches the same text are held out together",
        datasets=ONE_FOLDER,
    )
    num_workers: int | Literal["auto"] = data_option(
        "auto",
        "loader workers per process (0: load in the loop; auto: by processors and data)",
        at_least=0,
        at_most=1024,
        resume="free",
    )
    check_data: bool | str = data_option(
        False,
        "read every sample, list what is bad (also in a JSON file), and stop",
        resume="free",
    )
    allow_changed_data: bool = data_option(
        False, "resume although samples differ from those of the run so far", resume="free"
    )
    compare_contents: bool = data_option(
        False, "when resuming, compare what is in the files too; reads all at once", resume="free"
    )
    model: str = model_option("", "model name; docs/models.md lists them")
    weights: str = model_option(
        "none",
        "none, default (pretrained), backbone (its part alone), a file, a run's folder or hub:NAME",
    )
    double: bool = model_option(False, "compute in float64, to compare runs beyond rounding")
    deterministic: bool = model_option(
        False, "only algorithms that give the same bits at every run, also on a GPU; slower"
    )
    epochs: float = length_option(
        10.0, "length of training in passes over the data", at_least=0, resume="free"
    )
    max_steps: int = length_option(
        0,
        "length of training in optimizer steps, instead of epochs",
        at_least=0,
        at_most=MOST_STEPS,
        resume="free",
    )
    lr: float = optimisation_option(0.004, "peak learning rate", at_least=0)
    momentum: float = optimisation_option(
        0.9, "momentum of SGD (Nesterov's; 0: none)", at_least=0, below=1
    )
    weight_decay: float = optimisation_option(0.01, "weight decay", at_least=0)
    seed: int = optimisation_option(
        0, "seed of weights, order, augmentation and dropout", at_least=0, below=2**63
    )
    eval_every: int = evaluation_option(
        0, "optimizer steps between evaluations (0: once per epoch)", at_least=0
    )
    eval_only: bool = evaluation_option(
        False, "evaluate --weights or the resumed run, then stop", resume="free"
    )
    output_dir: str | None = evaluation_option(
        None, "folder of the run (default: a new one)", resume="free"
    )
    resume: str = evaluation_option(
        "never", "never, auto (continue the run in --output_dir) or a checkpoint", resume="free"
    )
    checkpoint_every: int = evaluation_option(
        0,
        "optimizer steps between checkpoints (0: after each evaluation)",
        at_least=0,
        resume="free",
    )
    keep_checkpoints: int = evaluation_option(
        2, "newest checkpoints to keep", at_least=1, resume="free"
    )
    log_every: int = evaluation_option(
        10, "optimizer steps between log lines", at_least=1, resume="free"
    )
    profile: bool = evaluation_option(False, "write a profiler trace of a few steps", resume="free")
    cpu: bool = evaluation_option(False, "use the CPU although there is a GPU", resume="free")

    def check(self) -> None:
        """Refuse values out of range, and options that the data set has no use for."""
        super().check()
        for field in dataclasses.fields(self):
            self._refuse_useless(field)
        for name in ("batch_size", "global_batch_size", "grad_accum", "microbatches"):
            if getattr(self, name, 0) > MOST_SAMPLES:
                raise UserError(
                    f"--{name} is {getattr(self, name)}; it must be at most {MOST_SAMPLES}."
                )
        for name in FILES:
            if getattr(self, name) and os.path.expanduser(getattr(self, name)).startswith("~"):
                user = getattr(self, name).partition("/")[0]
                raise UserError(f"--{name} {getattr(self, name)}: no user is called {user}.")
        if self.data_dir and self.dataset.partition(":")[0] in WITHOUT_FOLDER:
            raise UserError(f"--data_dir is of no use to --dataset {self.dataset}; leave it out.")
        self._check_holdout()
        if self.eval_only and self.resume == "never" and self.weights == "none":
            raise UserError("--eval_only needs something to evaluate: give --weights or --resume.")

    def _check_holdout(self) -> None:
        if self.fold is not None:
            parts = re.fullmatch(r"(\d+)/(\d+)", self.fold)
            if not parts or not 1 <= int(parts[1]) <= int(parts[2]) or int(parts[2]) < 2:
                raise UserError(f"--fold is {self.fold}; give a part and their number, as 2/5.")
            if self.val_share is not None:
                raise UserError("--fold and --val_share both say what validates: give one.")
        if self.val_group is not None:
            try:
                re.compile(self.val_group)
            except re.error as error:
                raise UserError(f"--val_group is no regular expression ({error}).") from None

    def check_launch(self, processes: int, on_cpu: bool, precision: str) -> None:
        """Refuse what the options and the launch make impossible together."""
        if self.double and precision != "no":
            raise UserError("--double computes in float64; launch it with --mixed_precision no.")

    def _refuse_useless(self, field: dataclasses.Field) -> None:
        """Refuse an option that the chosen data set has no use for."""
        wanted = field.metadata["datasets"]
        if not wanted or self.dataset.partition(":")[0] in wanted:
            return
        if getattr(self, field.name) != default_of(field):
            raise UserError(
                f"--{field.name} is for --dataset {' or '.join(wanted)} and does nothing with "
                f"{self.dataset}; leave it out."
            )


@dataclass
class TrainingOptions(CommonOptions):
    """The options of the scripts that train a whole network in every process."""

    channels_last: bool = model_option(
        True, "channels-last memory format of images and convolutions", resume="free"
    )
    compile: bool = model_option(False, "torch.compile the model", resume="free")
    cuda_graph: Literal["auto", "on", "off"] = model_option(
        "auto",
        "replay each step as a CUDA graph; auto: in one process on a GPU, where that is possible",
        resume="free",
    )
    norm: Literal["auto", "bn", "sync_bn", "group_norm", "frozen_bn"] = norm_option(
        "auto",
        "normalisation layer; auto: sync_bn for several processes with small batches",
        resume="free",
    )
    sync_bn_impl: Literal["own", "torch"] = norm_option(
        "own", "whose SyncBatchNorm: this project's, or torch's (on GPUs only)"
    )
    sync_bn_group_size: int = norm_option(
        0, "processes that share statistics, e.g. those of one node (0: all)", at_least=0
    )
    precise_bn: int = norm_option(
        0,
        "recompute the running statistics over this many batches before evaluating (0: off)",
        at_least=0,
    )
    batch_size: int = length_option(
        8,
        "samples per process and forward pass",
        at_least=1,
        resume="free",
    )
    global_batch_size: int = length_option(
        0,
        "samples per optimizer step over all processes, instead of --batch_size",
        at_least=0,
        resume="free",
    )
    grad_accum: int = length_option(
        1,
        "forward passes per optimizer step",
        at_least=1,
        resume="free",
    )
    optimizer: Literal["sgd", "adamw"] = optimisation_option("adamw", "SGD with momentum, or AdamW")
    scale_lr: int = optimisation_option(
        0,
        "the global batch that --lr is meant for; lr grows linearly with the batch (0: off)",
        at_least=0,
    )
    schedule: Literal["poly", "cosine", "constant", "one_cycle"] = optimisation_option(
        "cosine", "learning rate after the warm-up"
    )
    warmup_steps: int = optimisation_option(50, "optimizer steps of linear warm-up", at_least=0)
    decay_norm_and_bias: bool = optimisation_option(
        False, "apply weight decay to norm layers and biases too"
    )
    clip_grad: float = optimisation_option(
        0.0, "largest gradient norm (0: no clipping)", at_least=0
    )
    ema: float = optimisation_option(
        0.99,
        "decay of the averaged weights that are evaluated and saved (0: off)",
        at_least=0,
        below=1,
    )

    def check(self) -> None:
        """Refuse values out of range; the scripts add what relates their own options."""
        super().check()
        if not (self.max_steps or self.epochs or self.eval_only):
            raise UserError("--epochs is 0 and so is --max_steps: give the length of the training.")
        if 0 < (tile := getattr(self, "eval_tile", 0)) < SMALLEST_TILE:
            raise UserError(
                f"--eval_tile is {tile}; give at least {SMALLEST_TILE}, or 0 for whole pictures."
            )
        if self.norm not in ("auto", "sync_bn"):
            for name in ("sync_bn_group_size", "sync_bn_impl"):
                if (value := getattr(self, name)) not in (0, "own"):
                    raise UserError(
                        f"--{name} {value} is for --norm sync_bn and does nothing with "
                        f"{self.norm}; leave it out."
                    )
        if self.eval_only and self.weights == "backbone" and self.resume == "never":
            raise UserError("--eval_only needs weights of the whole model, not of the backbone.")

    def check_launch(self, processes: int, on_cpu: bool, precision: str) -> None:
        """Refuse what the options and the launch make impossible together."""
        super().check_launch(processes, on_cpu, precision)
        if on_cpu and self.sync_bn_impl == "torch":
            raise UserError("torch's SyncBatchNorm refuses the CPU; use --sync_bn_impl own.")
        if on_cpu and self.cuda_graph == "on":
            raise UserError("--cuda_graph on needs a GPU, and this runs on the CPU: leave it out.")
        self.samples_per_process(processes)

    def samples_per_process(self, processes: int) -> int:
        """Samples per process and forward pass, from --batch_size or --global_batch_size.

        Raises:
            UserError: the global batch doesn't divide into equal batches.
        """
        if not self.global_batch_size:
            return self.batch_size
        parts = processes * self.grad_accum
        batch_size, rest = divmod(self.global_batch_size, parts)
        if rest or not batch_size:
            lower, upper = parts * batch_size, parts * (batch_size + 1)
            near = f"{lower} or {upper}" if lower else f"{upper}"
            raise UserError(
                f"--global_batch_size {self.global_batch_size} does not divide into {processes} "
                f"processes x {self.grad_accum} forward passes; use {near}."
            )
        return batch_size


# ``--eval_tile`` and ``--eval_overlap``, of the tasks that can work in tiles.
eval_tile_option = partial(
    evaluation_option,
    0,
    "cut validation pictures into squares of so many pixels (0: look at them whole)",
    at_least=0,
)
eval_overlap_option = partial(
    evaluation_option,
    0.25,
    "share of such a square that the next one shows too",
    at_least=0,
    at_most=0.5,
)

# ``--color_jitter``, which every task has, with a default of its own.
color_jitter_option = partial(
    augmentation_option,
    help="changes of brightness, contrast, saturation and hue (hue up to 0.5)",
    at_least=0,
    at_most=[math.inf, math.inf, math.inf, 0.5],
    length=4,
)
