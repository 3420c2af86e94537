"""Determinism: what is refused, and where counting may go on."""

import pytest
import torch

from engine.randomness import counting_freely, naming_what_is_not_deterministic, set_deterministic
from errors import UserError


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    message = "nll_loss2d_forward does not have a deterministic implementation, but you set ..."
    words = "--deterministic: nll_loss2d_forward has no"
    with pytest.raises(UserError, match=words), naming_what_is_not_deterministic():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="memory"), naming_what_is_not_deterministic():
        raise RuntimeError("out of memory")


def test_evaluation_counts_freely() -> None:
    set_deterministic(True)
    try:
        with counting_freely():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
