"""Which layer of a network is being computed, for the message about one that can't be exported."""

import contextlib
from collections.abc import Iterator

from torch import nn


class LayerInWork:
    """The names of the layers that have begun and not ended, the innermost last."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __str__(self) -> str:
        return self.names[-1] if self.names else "the network itself"


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[LayerInWork]:
    """Inside, every layer of a model says when it begins and ends."""
    at, handles = LayerInWork(), []
    for name, module in model.named_modules():
        if not name:
            continue

        def begin(module: nn.Module, args: object, name: str = name) -> None:
            at.names.append(name)

        def end(module: nn.Module, args: object, result: object) -> None:
            at.names.pop()

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield at
    finally:
        for handle in handles:
            handle.remove()
