"""From a run's folder to a repository of the hub."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from engine.about import About, read_about
from errors import UserError
from models.find_weights import BEST, NAMED_WEIGHTS
from sharing.card import model_card
from sharing.options import ShareOptions

# Files of a run that are sent as they are, where they exist.
COPIED = (BEST, "metrics.jsonl")
# Options whose values are places on somebody's machine.
PLACES = ("data_dir", "output_dir", "resume")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
MOST_PICTURES = 8


def share(options: ShareOptions) -> str:
    """Send a run to the hub, or write what would be sent into a folder.

    Returns:
        A sentence that says where it is.

    Raises:
        UserError: the run has no weights, or the hub can't be reached or refuses.
    """
    run = Path(options.run).expanduser()
    about = _about(run)
    if options.folder:
        folder = Path(options.folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} isn't empty: give another --folder.")
        collect(run, about, folder, options)
        return f"{folder} holds what would be sent."
    with tempfile.TemporaryDirectory() as folder:
        collect(run, about, Path(folder), options)
        return f"Shared as {_send(Path(folder), options)}."


def _about(run: Path) -> About:
    if not (run / BEST).is_file():
        raise UserError(f"{run} has no {BEST}: give the folder of a run that has been evaluated.")
    about = read_about(run / BEST)
    if about is None:
        raise UserError(
            f"{run / BEST} doesn't say what it is, since an older version of the scripts wrote it: "
            "evaluate the run again with --resume auto."
        )
    return about


def collect(run: Path, about: About, folder: Path, options: ShareOptions) -> None:
    """Write what is sent into ``folder``: nothing in it is a path of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    pictures = sorted(run.glob("*.png"))[:MOST_PICTURES]
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    recipe = _without_places(_read(run / "config.yaml", yaml.safe_load))
    summary = _read(run / "summary.json", json.loads)
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    given = {"repo": options.repo, "license": options.license}
    card = model_card(about, recipe, summary, [picture.name for picture in pictures], given)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """The content of a file of the run; {} where it isn't there, or not yet complete."""
    try:
        return parse(path.read_text()) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """Options without paths, which name somebody's folders."""
    kept = {name: value for name, value in recipe.items() if name not in PLACES}
    if kept.get("weights", "none") not in NAMED_WEIGHTS and not kept["weights"].startswith("hub:"):
        kept["weights"] = Path(kept["weights"]).name
    if str(kept.get("dataset", "")).startswith("hub:") and "/" in kept["dataset"]:
        name = kept["dataset"].removeprefix("hub:")
        # A folder need not be there any more, nor on this machine; the hub's names have two parts.
        if not HUB_NAME.fullmatch(name) or Path(name).exists():
            kept["dataset"] = f"hub:{Path(name).name}"
    if isinstance(kept.get("class_names"), str):
        kept["class_names"] = Path(kept["class_names"]).name
    return kept


def _send(folder: Path, options: ShareOptions) -> str:
    from huggingface_hub import HfApi  # of datasets' requirements

    api = HfApi()
    try:
        api.create_repo(options.repo, private=options.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=options.repo, folder_path=folder, commit_message="A trained network"
        )
    except Exception as error:  # of any type: network, access rights, names
        reason = " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
        raise UserError(
            f"{options.repo} could not be sent to the hub ({reason}): check the network, and log "
            "in with `hf auth login`."
        ) from None
    return str(getattr(done, "repo_url", None) or f"{api.endpoint}/{options.repo}")
