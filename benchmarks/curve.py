"""The curve of a run that may be going on or have been killed."""

import json
from pathlib import Path


def curve(path: Path, *names: str) -> list[dict]:
    """The whole lines of a run's metrics.jsonl, of these values only if some are named.

    [] where there is no such file yet; the line in which the run was killed is left out.
    """
    file = path / "metrics.jsonl"
    texts = file.read_text().splitlines(keepends=True) if file.exists() else []
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    return [{key: line[key] for key in names or line if key in line} for line in lines]
