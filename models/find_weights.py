"""Which file ``--weights`` means: a file, a run's folder, or a repository of the hub.

Nothing here imports torch.
"""

from pathlib import Path

from errors import UserError

# What ``weights`` may be besides the name of a file.
NAMED_WEIGHTS = ("none", "default", "backbone")
BEST = "best.safetensors"  # of a run
HUB = "hub:"


def find_weights(weights: str | Path) -> Path:
    """The file of weights that is meant.

    Args:
        weights: a file; the folder of a run, whose best weights are meant; or ``hub:owner/name``,
            whose ``best.safetensors`` is fetched into the hub's cache, and nothing else.

    Raises:
        UserError: there is no such file, or it can't be fetched.
    """
    if str(weights).startswith(HUB):
        return _fetch(str(weights).removeprefix(HUB))
    path = Path(weights).expanduser()
    if path.is_dir():
        if (path / BEST).is_file():
            return path / BEST
        raise UserError(
            f"{path} is a folder without {BEST}: give the folder of a run that has been evaluated, "
            "or a file of weights."
        )
    if not path.is_file():
        raise UserError(
            f"{path} is not a file of weights: pass the path of one, the folder of a run, "
            f"hub:owner/name, or one of the names {', '.join(NAMED_WEIGHTS)}."
        )
    return path


def _fetch(repository: str) -> Path:
    from huggingface_hub import hf_hub_download  # of datasets' requirements

    try:
        return Path(hf_hub_download(repository, BEST))
    except Exception as error:  # of any type: network, access rights, names
        reason = str(error).strip().partition("\n")[0].rstrip(".:") or "no answer"
        raise UserError(
            f"{BEST} of {repository} can't be fetched from the hub ({type(error).__name__}: "
            f"{reason}): check the name, the network, and your access; weights in other formats "
            "than safetensors are not read."
        ) from None
