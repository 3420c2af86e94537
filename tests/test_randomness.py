"""Seeds of steps, and determinism: what is refused, and where counting may go on."""

import pytest
import torch

from data.stream import sample_seed
from engine.randomness import (
    counting_freely,
    naming_what_is_not_deterministic,
    seed_step,
    set_deterministic,
)
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


def test_steps_and_samples_draw_from_key_spaces_of_their_own() -> None:
    def drawn(*key: int) -> int:
        seed_step(*key, torch.device("cpu"))
        return torch.initial_seed()

    keys = [(seed, a, b) for seed in range(3) for a in range(4) for b in range(4)]
    steps = {drawn(*key) for key in keys}
    assert len(steps) == len(keys) and steps.isdisjoint(sample_seed(*key) for key in keys)
    assert drawn(1, 2, 3) == drawn(1, 2, 3)
