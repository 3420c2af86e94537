"""The tasks by name, each imported when it is asked for."""

import importlib
from typing import Any

# Of each task, the class of its options and that of its inference.
TASKS = {
    "segmentation": ("SegmentationOptions", "SegmentationInference"),
    "detection": ("DetectionOptions", "DetectionInference"),
    "video": ("VideoOptions", "VideoInference"),
    "classification": ("ClassificationOptions", "ClassificationInference"),
}


def options_class(task: str) -> type:
    """The options of a task's training script; imports nothing that is slow."""
    return getattr(importlib.import_module(f"tasks.{task}.options"), TASKS[task][0])


def inference_class(task: str) -> type:
    """A task's subclass of ``engine.inference.Inference``."""
    return getattr(importlib.import_module(f"tasks.{task}.inference"), TASKS[task][1])


def with_options(task: str, saved: dict[str, Any]) -> Any:
    """The options of a task's script: the saved ones, and for the rest the defaults."""
    known = options_class(task)
    return known(**{k: v for k, v in saved.items() if k in known.__dataclass_fields__})
