"""The heads of a published detector for other classes: what it learnt of the classes both have."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.weights import logger

# Where a torchvision detector's number of classes enters, by the models' own names.
HEADS = ("roi_heads.box_predictor", "roi_heads.mask_predictor", "head.classification_head")
# The layers in them with outputs of their own for every class; the last is ssdlite's.
CLASS_LAYERS = re.compile(r"cls_score|bbox_pred|mask_fcn_logits|cls_logits|module_list\.\d+\.1\.")
BACKGROUND, NO_CLASS = "__background__", "N/A"  # torchvision's names
NAMED = 6  # classes that the message names


def replace_heads(
    model: nn.Module,
    fresh: nn.Module,
    theirs: Sequence[str],
    ours: Sequence[str | None],
    source: str,
) -> None:
    """Give `model` the heads of `fresh`, with all that its own have learnt of the same classes.

    Args:
        model: a torchvision detector with published weights.
        fresh: the same detector for other classes; its heads move to `model`.
        theirs: name of each class of `model`'s heads.
        ours: name of each class of `fresh`'s heads, with the background if there is one; None for
            a class without a name.
        source: the weights' name, for the message on what stays random.
    """
    number = {name: i for i, name in enumerate(theirs) if name != NO_CLASS}
    pairs = [(i, number[name]) for i, name in enumerate(ours) if name in number]
    for path in HEADS:
        try:
            old, new = model.get_submodule(path), fresh.get_submodule(path)
        except AttributeError:
            continue
        before = old.state_dict()
        for key, tensor in new.state_dict().items():
            if not CLASS_LAYERS.search(key):
                tensor.copy_(before[key])
            elif pairs:
                # Two-stage heads hold the outputs of a class together, dense ones those of an
                # anchor.
                by_class = path.startswith("roi_heads")
                to, learnt = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
                mine = _classes_first(tensor, len(ours), by_class)
                mine[to] = _classes_first(before[key], len(theirs), by_class)[learnt]
        model.set_submodule(path, new)
    others = [str(name) for name in ours if name not in number and name != BACKGROUND]
    if others:
        total = sum(name != BACKGROUND for name in ours)
        named = [name for name in others if name != "None"][:NAMED]
        more = ["others"] if named and len(others) > len(named) else []
        which = f" ({', '.join(named + more)})" if named else ""
        logger.warning(
            f"{source}: {total - len(others)} of the {total} classes are in it, and what the heads "
            f"know of the others{which} starts random."
        )


def _classes_first(tensor: Tensor, classes: int, by_class: bool) -> Tensor:
    """A view (classes, outputs of each, ...) of a weight or bias."""
    shape = tensor.shape[1:]
    if by_class:
        return tensor.view(classes, -1, *shape)
    return tensor.view(-1, classes, *shape).transpose(0, 1)
