"""Folding BatchNorm into the convolution before it: the same function with fewer layers."""

import copy

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
BATCH_NORM = "aten.batch_norm.default"


def fold_batch_norm(model: nn.Module, program: ExportedProgram) -> tuple[nn.Module, int]:
    """A copy of a model whose BatchNorms are part of the convolutions before them.

    A pair is folded where nothing else reads the convolution's output and neither layer is used
    twice. The graph says so, whatever the model's code looks like.

    Args:
        model: in evaluation mode.
        program: what ``torch.export.export`` made of it.

    Returns:
        The copy, and how many layers were folded.
    """
    model = copy.deepcopy(model)
    names = {
        **program.graph_signature.inputs_to_parameters,
        **program.graph_signature.inputs_to_buffers,
    }
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    uses: dict[str, int] = {}
    for node in nodes:
        if str(node.target) in (*CONVOLUTIONS, BATCH_NORM):
            owner = _owner(node.args[1], names)
            uses[owner] = uses.get(owner, 0) + 1
    folded = 0
    for node in nodes:
        before = node.args[0] if str(node.target) == BATCH_NORM else None
        if before is None or str(getattr(before, "target", "")) not in CONVOLUTIONS:
            continue
        conv, norm = _owner(before.args[1], names), _owner(node.args[1], names)
        if len(before.users) > 1 or uses.get(conv) != 1 or uses.get(norm) != 1:
            continue
        layers = model.get_submodule(conv), model.get_submodule(norm)
        if not (isinstance(layers[0], nn.modules.conv._ConvNd) and _is_plain(layers[1])):
            continue
        model.set_submodule(conv, fuse_conv_bn_eval(*layers))
        model.set_submodule(norm, _what_follows(layers[1]))
        folded += 1
    return model, folded


def _owner(argument: object, names: dict[str, str]) -> str:
    """The module that holds a parameter which is an argument in the graph; "" if none does."""
    return names.get(getattr(argument, "name", ""), "").rpartition(".")[0]


def _is_plain(norm: nn.Module) -> bool:
    """Whether a layer has what a BatchNorm has, also if it is frozen or followed by something."""
    return isinstance(getattr(norm, "running_var", None), Tensor) and norm.weight is not None


def _what_follows(norm: nn.Module) -> nn.Module:
    """timm's layers apply dropout and an activation after normalising."""
    if hasattr(norm, "act") and hasattr(norm, "drop"):
        return nn.Sequential(norm.drop, norm.act)
    return nn.Identity()
