"""The heads of a published detector for other classes, with what they learnt of shared ones."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.weights import logger

# The parts of a torchvision detector that depend on the number of classes.
HEADS = ("roi_heads.box_predictor", "roi_heads.mask_predictor", "head.classification_head")
# The layers in them that have outputs for every class; the last is ssdlite's.
CLASS_LAYERS = re.compile(r"cls_score|bbox_pred|mask_fcn_logits|cls_logits|module_list\.\d+\.1\.")
BACKGROUND, NO_CLASS = "__background__", "N/A"  # torchvision's names
NAMED = 6  # classes that the message names at most


def replace_heads(
    model: nn.Module,
    fresh: nn.Module,
    theirs: Sequence[str],
    ours: Sequence[str | None],
    source: str,
) -> None:
    """Give a detector heads for other classes, with what its own have learnt about shared ones.

    Args:
        model: a torchvision detector with published weights.
        fresh: the same detector for the other classes; its heads move to ``model``.
        theirs: name of each class of ``model``'s heads.
        ours: name of each class of ``fresh``'s heads, with the background if there is one; None for
            a class without a name.
        source: name of the weights, for the message about what stays random.
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
                # Two-stage heads order outputs by class, dense ones by anchor.
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
            f"{source}: {total - len(others)} of the {total} classes are in it, and the outputs "
            f"for the others{which} start random."
        )


def _classes_first(tensor: Tensor, classes: int, by_class: bool) -> Tensor:
    """A view of a weight or bias with the shape (classes, outputs of each, ...)."""
    shape = tensor.shape[1:]
    if by_class:
        return tensor.view(classes, -1, *shape)
    return tensor.view(-1, classes, *shape).transpose(0, 1)
