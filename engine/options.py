"""Options: typed dataclasses, read from the command line and from recipe files.

Nothing here imports torch, so ``--help`` answers at once and a mistyped option is refused before
the slow imports begin.
"""

import dataclasses
import difflib
import itertools
import math
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_type_hints

import jsonargparse
import yaml

from errors import UserError


def option(
    default: Any,
    help: str,
    *,
    resume: Literal["same", "free"] = "same",
    datasets: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with a help text.

    Args:
        default: the default value.
        help: one sentence for ``--help``.
        resume: "same" if a run can only be resumed with the same value, "free" if the value may
            change between the parts of a run.
        datasets: the values of ``--dataset`` that the option is for ("hub" stands for all of the
            hub's); with another one it would do nothing, and is refused. Empty: any.
    """
    if datasets:
        help = f"{', '.join(datasets)}: {help}"
    metadata = {"help": help, "resume": resume, "datasets": datasets}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


SMALLEST = {
    **dict.fromkeys(("batch_size", "grad_accum", "log_every", "keep_checkpoints"), 1),
    **dict.fromkeys(("limit_train", "limit_val", "num_workers", "global_batch_size"), 0),
    **dict.fromkeys(("max_steps", "eval_every", "checkpoint_every", "warmup_steps"), 0),
    **dict.fromkeys(("precise_bn", "sync_bn_group_size", "scale_lr", "seed", "epochs"), 0),
    **dict.fromkeys(("lr", "weight_decay", "clip_grad", "ema"), 0),
}


# Data sets that are made here, or named by --dataset alone.
WITHOUT_FOLDER = ("synthetic", "fake", "hub")


@dataclass
class CommonOptions:
    """What every training script understands."""

    # Data
    dataset: str = option("synthetic", "data source; docs/data.md lists them")
    data_dir: str | None = option(None, "folder of the data set", resume="free")
    limit_train: int = option(0, "use only this many training samples, evenly spaced (0: all)")
    limit_val: int = option(0, "use only this many validation samples, evenly spaced (0: all)")
    num_workers: int = option(2, "loader workers per process (0: load in the loop)", resume="free")
    check_data: bool = option(False, "read every sample, list what is bad, and stop", resume="free")
    # Model
    model: str = option("", "model name; docs/models.md lists them")
    weights: str = option(
        "none",
        "none, default (pretrained, downloaded), backbone (only the backbone pretrained) or a file",
    )
    norm: Literal["auto", "bn", "sync_bn", "group_norm", "frozen_bn"] = option(
        "auto",
        "normalisation layer; auto: sync_bn for several processes with small batches",
        resume="free",
    )
    sync_bn_impl: Literal["auto", "torch", "own"] = option(
        "auto", "whose SyncBatchNorm: torch's, this project's, or the one verified on the device"
    )
    sync_bn_group_size: int = option(
        0, "processes that share statistics, e.g. those of one node (0: all)"
    )
    precise_bn: int = option(
        0, "recompute the running statistics over this many batches before evaluating (0: off)"
    )
    channels_last: bool = option(True, "memory format of images and convolutions", resume="free")
    compile: bool = option(False, "torch.compile the model", resume="free")
    double: bool = option(False, "compute in float64, to compare runs beyond rounding")
    # Length and batch
    epochs: float = option(10.0, "length of training in passes over the data", resume="free")
    max_steps: int = option(0, "length of training in optimizer steps, instead", resume="free")
    batch_size: int = option(4, "samples per process and forward pass", resume="free")
    global_batch_size: int = option(
        0,
        "samples per optimizer step over all processes, instead of --batch_size",
        resume="free",
    )
    grad_accum: int = option(1, "forward passes per optimizer step", resume="free")
    # Optimisation
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with momentum, or AdamW")
    momentum: float = option(0.9, "momentum of SGD (Nesterov's; 0: none)")
    lr: float = option(0.1, "peak learning rate")
    scale_lr: int = option(
        0, "the global batch that --lr is meant for; lr grows linearly with the batch (0: off)"
    )
    schedule: Literal["poly", "cosine", "constant", "one_cycle"] = option(
        "cosine", "learning rate after the warm-up"
    )
    warmup_steps: int = option(0, "optimizer steps of linear warm-up")
    weight_decay: float = option(1e-4, "weight decay")
    decay_norm_and_bias: bool = option(False, "apply weight decay to norm layers and biases too")
    clip_grad: float = option(0.0, "largest gradient norm (0: no clipping)")
    ema: float = option(0.0, "decay of the averaged weights that are evaluated and saved (0: off)")
    seed: int = option(0, "seed of weights, order, augmentation and dropout")
    # Evaluation, files and reports
    eval_every: int = option(0, "optimizer steps between evaluations (0: once per epoch)")
    eval_only: bool = option(
        False, "evaluate --weights or the resumed run, then stop", resume="free"
    )
    output_dir: str | None = option(None, "folder of the run (default: a new one)", resume="free")
    resume: str = option(
        "never", "never, auto (continue the run in --output_dir) or a checkpoint", resume="free"
    )
    checkpoint_every: int = option(
        0, "optimizer steps between checkpoints (0: after each evaluation)", resume="free"
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep", resume="free")
    log_every: int = option(10, "optimizer steps between log lines", resume="free")
    profile: bool = option(False, "write a profiler trace of a few steps", resume="free")
    cpu: bool = option(False, "use the CPU although there is a GPU", resume="free")

    def check(self) -> None:
        """Refuse values out of range, before any work; scripts extend it for their own options.

        Raises:
            UserError: names the option, its value and the range.
        """
        for name, smallest in SMALLEST.items():
            value = getattr(self, name)
            if not value >= smallest:
                raise UserError(f"--{name} is {value}; it must be at least {smallest}.")
        self._check_data_options()
        if self.seed >= 2**63:
            raise UserError(f"--seed is {self.seed}; it must be below 2**63.")
        if self.ema >= 1:
            raise UserError(f"--ema is {self.ema}; a decay is below 1, e.g. 0.999.")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum is {self.momentum}; it is from 0 to below 1.")
        if not (self.max_steps or self.epochs or self.eval_only):
            raise UserError("--epochs is 0 and so is --max_steps: give the length of the training.")
        if self.eval_only and self.weights == "backbone" and self.resume == "never":
            raise UserError("--eval_only needs weights of the whole model, not of the backbone.")
        if self.eval_only and self.resume == "never" and self.weights == "none":
            raise UserError("--eval_only needs something to evaluate: give --weights or --resume.")

    def _check_data_options(self) -> None:
        """Refuse options that the chosen data set has no use for."""
        kind = self.dataset.partition(":")[0]
        if self.data_dir and kind in WITHOUT_FOLDER:
            raise UserError(f"--data_dir is of no use to --dataset {self.dataset}; leave it out.")
        for field in dataclasses.fields(self):
            wanted = field.metadata["datasets"]
            if wanted and kind not in wanted and getattr(self, field.name) != _default(field):
                raise UserError(
                    f"--{field.name} is for --dataset {' or '.join(wanted)} and does nothing with "
                    f"{self.dataset}; leave it out."
                )

    def check_shares(self, *names: str) -> None:
        """Refuse probabilities and shares that aren't between 0 and 1."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"--{name} is {value}; it is between 0 and 1.")

    def check_color_jitter(self) -> None:
        """Refuse ``--color_jitter`` out of range."""
        self.check_lengths(color_jitter=4)
        if not (min(self.color_jitter) >= 0 and self.color_jitter[3] <= 0.5):
            raise UserError(
                f"--color_jitter {self.color_jitter} has four values from 0, hue to 0.5."
            )

    def check_lengths(self, **lengths: int) -> None:
        """Refuse lists of another length than given by name; None passes."""
        for name, length in lengths.items():
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise UserError(f"--{name} is {value}; it takes {length} values.")


Options = TypeVar("Options", bound=CommonOptions)


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def parse(options_class: type[Options], description: str, args: list[str] | None = None) -> Options:
    """Read the options from the command line, over those of ``--config`` files.

    Args:
        options_class: the script's dataclass; its fields become flags with underscores, booleans
            ``--name`` and ``--no_name``.
        description: what ``--help`` begins with.
        args: the command line (default: ``sys.argv[1:]``).

    Raises:
        UserError: an unknown option, a value of the wrong type or out of range, a missing or
            malformed file.
    """
    script = os.path.basename(sys.argv[0])
    parser = jsonargparse.ArgumentParser(
        prog=script,
        usage="%(prog)s [--option value ...]",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="file of options; flags override it")
    _add_fields(parser, options_class)
    words = _join_lists(sys.argv[1:] if args is None else args, options_class)
    _check_config_files(words)
    try:
        values = parser.parse_args(words)
    except (jsonargparse.ArgumentError, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(_explain(error, options_class, script)) from None
    values.pop("config", None)
    options = options_class(**vars(values))
    _refuse_non_finite(options)
    options.check()
    return options


def _refuse_non_finite(options: CommonOptions) -> None:
    """Refuse infinities and what is no number, which no range of an option can mean."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(n) for n in numbers if isinstance(n, float)):
            raise UserError(f"--{field.name} is {value}; give a finite number.")


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """jsonargparse's, which leaves the lines of the description, with its commands, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.strip().splitlines(keepends=True))


def _join_lists(words: list[str], options_class: type) -> list[str]:
    """``--crop_size 96 96`` as ``--crop_size=[96,96]``; shells want the brackets quoted."""
    types = get_type_hints(options_class)
    lists = {f"--{name}" for name, kind in types.items() if "list[" in str(kind)}
    joined: list[str] = []
    while words:
        word, *words = words
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
        if word in lists and len(values) > 1:
            word, words = f"{word}=[{','.join(values)}]", words[len(values) :]
        joined.append(word)
    return joined


def _check_config_files(words: list[str]) -> None:
    """Refuse what can't be a file of options, naming it; jsonargparse tells only what is in it."""
    for word, following in itertools.pairwise([*words, ""]):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or following
            try:
                with open(path, encoding="utf-8") as file:
                    file.read()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise UserError(f"--config {path} can't be read: {reason}.") from None


def _add_fields(parser: jsonargparse.ArgumentParser, options_class: type) -> None:
    types = get_type_hints(options_class)
    inherited = {field.name for field in dataclasses.fields(CommonOptions)}
    common = parser.add_argument_group("options of every script")
    own = parser.add_argument_group("options of this script")
    for field in dataclasses.fields(options_class):
        group = common if field.name in inherited else own
        settings: dict[str, Any] = {"default": _default(field), "help": field.metadata["help"]}
        if types[field.name] is bool:
            settings |= {
                "action": jsonargparse.ActionYesNo(yes_prefix="", no_prefix="no_"),
                "nargs": "?",
            }
        else:
            settings["type"] = types[field.name]
        group.add_argument(f"--{field.name}", **settings)


def _explain(error: Exception, options_class: type, script: str) -> str:
    """Turn the parser's message into one sentence; name the near options where one is unknown."""
    message = " ".join(str(error).split())
    names = [field.name for field in dataclasses.fields(options_class)] + ["config"]
    for word in message.replace('"', " ").replace("'", " ").replace(":", " ").split():
        key = word.lstrip("-").split("=")[0].rstrip(".,")
        unknown = word.startswith("--") or "nrecognized" in message or "not accept" in message
        if unknown and key not in names and key.isidentifier():
            near = difflib.get_close_matches(key, names, n=3)
            if near or word.startswith("--"):
                hint = f"did you mean {' or '.join('--' + n for n in near)}?" if near else ""
                return f"{script}: unknown option {key!r}; {hint or 'see --help.'}"
    return f"{script}: {message}"
