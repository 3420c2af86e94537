"""The model card of a run: what it was trained on and how, what came out, and what it can't do."""

from typing import Any

import yaml

from engine.about import About
from models.find_weights import NAMED_WEIGHTS

PIPELINE_TAGS = {
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "video": "video-classification",
    "classification": "image-classification",
}
BEST_METRIC = {"segmentation": "miou", "detection": "ap", "video": "top1", "classification": "top1"}
# Options that say how a training went; the card lists those of them that a run has.
RECIPE = (
    "model",
    "backbone",
    "weights",
    "image_size",
    "crop_size",
    "clip_frames",
    "frame_stride",
    "fps",
    "epochs",
    "max_steps",
    "batch_size",
    "global_batch_size",
    "optimizer",
    "lr",
    "schedule",
    "weight_decay",
    "loss",
    "ema",
    "norm",
    "seed",
)


def model_card(
    about: About, options: dict[str, Any], summary: dict[str, Any], pictures: list[str], given: dict
) -> str:
    """README.md of a repository of the hub.

    Args:
        about: what the weights say about themselves.
        options: of the run, without paths.
        summary: the run's summary.json.
        pictures: names of the sample pictures beside the card.
        given: "repo" and "license", as far as known.
    """
    name = given.get("repo") or f"{about.task} with {about.options['model']}"
    parts = [
        _front_matter(about, options, given),
        f"# {name}",
        f"A network for {about.task}: `{about.options['model']}`, {len(about.classes)} classes.",
        "## Use",
        _use(about, given.get("repo") or "owner/name"),
        "## Data",
        f"`--dataset {options.get('dataset', '?')}`{_limited(options, 'limit_train')}. "
        f"Classes: {', '.join(about.classes)}.",
        "## Recipe",
        _table(
            ("option", "value"), [(n, options[n]) for n in RECIPE if options.get(n) is not None]
        ),
        _run_sentence(summary),
        "The whole recipe is in `config.yaml`; the command repeats the training:",
        f"    {_command(options, summary)}",
        "## Results",
        f"On the validation data{_limited(options, 'limit_val')}, at step {about.step}:",
        _table(("metric", "value"), [(n, f"{v:.4f}") for n, v in about.metrics.items()]),
        *(f"![{picture}]({picture})" for picture in pictures),
        "## Limits",
        _limits(about, options),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(about: About, options: dict[str, Any], given: dict) -> str:
    best = BEST_METRIC[about.task]
    head: dict[str, Any] = {"pipeline_tag": PIPELINE_TAGS[about.task], "tags": ["pytorch"]}
    if given.get("license"):
        head["license"] = given["license"]
    if best in about.metrics and given.get("repo"):
        result = {
            "task": {"type": PIPELINE_TAGS[about.task]},
            "dataset": {"name": options.get("dataset", "?"), "type": options.get("dataset", "?")},
            "metrics": [{"type": best, "value": round(about.metrics[best], 6)}],
        }
        head["model-index"] = [{"name": given["repo"].partition("/")[2], "results": [result]}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _command(options: dict[str, Any], summary: dict[str, Any]) -> str:
    """What repeats the run: on any number of processes, since it names the global batch."""
    words = [f"python train_{summary.get('task', 'segmentation')}.py --config config.yaml"]
    if "global_batch_size" in options and "global_batch_size" in summary:
        words.append(f"--global_batch_size {summary['global_batch_size']}")
    base = options.get("weights", "none")
    if base not in NAMED_WEIGHTS and not base.startswith("hub:"):
        words.append("--weights YOUR_BASE_WEIGHTS")
    return " ".join([*words, "--data_dir YOUR_DATA"])


def _limited(options: dict[str, Any], name: str) -> str:
    return f" (at most {options[name]} samples, `--{name}`)" if options.get(name) else ""


def _use(about: About, repo: str) -> str:
    kind = "video.mp4" if about.task == "video" else "picture.jpg"
    return (
        f"    python predict.py --weights hub:{repo} --input {kind} --output out/\n\n"
        "or from Python, in a checkout of the scripts:\n\n"
        "    from inference.trained import load_trained\n"
        f'    model = load_trained("hub:{repo}")\n'
        f'    result = model.predict("{kind}")\n\n'
        "`best.safetensors` holds plain BatchNorm, and loads without the scripts too. Its header "
        "says model, classes, size and pixel scaling."
    )


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])


def _run_sentence(summary: dict[str, Any]) -> str:
    if not summary:
        return ""
    norm = summary.get("norm") or {}
    return (
        f"{summary['steps']} optimizer steps of {summary['global_batch_size']} samples, in "
        f"{summary['world_size']} process{'es' if summary['world_size'] > 1 else ''} on "
        f"{summary['device']}, in {summary['seconds'] / 60:.1f} minutes"
        + (f"; normalisation: {norm['kind']}." if norm.get("kind") else ".")
    )


def _limits(about: About, options: dict[str, Any]) -> str:
    """What follows from the run's own files, and no more."""
    lines = [
        "- It knows the classes above and no others, and was measured on one validation set, the "
        "one that also chose the best step: on other data expect less.",
    ]
    worst = sorted(
        (value, name.partition("/")[2])
        for name, value in about.metrics.items()
        if name.startswith(("iou/", "ap/"))
    )[:3]
    if worst:
        shown = ", ".join(f"{name} ({value:.3f})" for value, name in worst)
        lines.append(f"- The classes that it finds worst: {shown}.")
    size = next((about.options.get(n) for n in ("image_size", "crop_size", "eval_size")), None)
    if size:
        lines.append(f"- It looks at {size[0]}x{size[1]} pixels; smaller details are lost.")
    if not about.options.get("hflip"):
        lines.append("- It never saw mirrored pictures.")
    if options.get("weights", "none") == "none":
        lines.append("- It was trained from scratch, on this data alone.")
    return "\n".join(lines)
