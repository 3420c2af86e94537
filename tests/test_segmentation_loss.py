"""Losses and metrics of segmentation against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from errors import UserError
from tasks.segmentation import metrics
from tasks.segmentation.loss import (
    cross_entropy_sum,
    dice_sum,
    median_frequency_weights,
    weight_sum,
)
from tasks.segmentation.metrics import count_pixels, most_probable, segmentation_metrics


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 6, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (5, 6, 7), generator=generator)
    target[torch.rand(5, 6, 7, generator=generator) < 0.3] = 255
    target[4] = 255  # an image without a valid pixel
    return logits, target


@pytest.mark.parametrize("weight", [None, [0.5, 1.0, 2.0, 0.0]])
def test_cross_entropy_is_torch_s_mean_however_it_is_split(batch, weight) -> None:
    logits, target = batch
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    mean = F.cross_entropy(logits, target, weight, ignore_index=255)
    for split in ([5], [2, 3], [1, 1, 1, 1, 1], [4, 1]):
        parts = list(zip(logits.split(split), target.split(split), strict=True))
        total = sum(weight_sum(t, weight) for _, t in parts)
        shares = [cross_entropy_sum(x, t, weight) / total for x, t in parts]
        assert torch.allclose(sum(shares), mean, rtol=1e-12)


def test_dice_counts_each_image_by_itself(batch) -> None:
    logits, target = batch
    whole = dice_sum(logits, target)
    assert torch.allclose(
        whole, dice_sum(logits[:2], target[:2]) + dice_sum(logits[2:], target[2:])
    )
    # Image 0 by the definition.
    valid = target[0] != 255
    losses = []
    for c in target[0][valid].unique():
        p, t = logits[0].softmax(0)[c][valid], (target[0][valid] == c).double()
        losses.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
    assert torch.allclose(dice_sum(logits[:1], target[:1]), torch.stack(losses).mean())
    assert dice_sum(logits[4:], target[4:]) == 0
    perfect = 50 * F.one_hot(target[:1].clamp(max=3), 4).movedim(-1, 1).double()
    assert dice_sum(perfect, target[:1]) < 1e-9


def test_median_frequency_weights() -> None:
    pixels, images = torch.tensor([900, 100, 0, 30]), torch.tensor([9, 2, 0, 3])
    # 100, 50 and 10 pixels in an image that has the class: the median is 50.
    assert median_frequency_weights(pixels, images).tolist() == pytest.approx([0.5, 1, 0, 5])


def test_metrics_leave_out_absent_classes() -> None:
    confusion = torch.zeros(4, 4, dtype=torch.float64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[2, 0] = 60, 20, 10, 10
    metrics = segmentation_metrics(confusion, ["ground", "disk", "square", "star"])
    assert metrics == pytest.approx(
        {
            "miou": (60 / 90 + 10 / 30 + 0) / 3,
            "pixel_accuracy": 0.7,
            "iou/ground": 60 / 90,
            "iou/disk": 10 / 30,
            "iou/square": 0,
        }
    )


def test_masks_without_a_pixel_to_score_are_refused() -> None:
    with pytest.raises(UserError, match="Every pixel of the scored masks is ignored"):
        segmentation_metrics(torch.zeros(4, 4, dtype=torch.float64), ["a", "b", "c", "d"])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", [1, 400, metrics.BLOCK])
def test_pixels_are_counted_as_by_argmax_in_blocks_of_any_size(
    batch, memory_format, block, monkeypatch
) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    logits, target = batch
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    confusion, loss = count_pixels(logits.contiguous(memory_format=memory_format), target, weight)
    wanted = torch.zeros(4, 4, dtype=torch.int64)
    for truth, prediction in zip(target.flatten(), logits.argmax(1).flatten(), strict=True):
        if truth != 255:
            wanted[truth, prediction] += 1
    assert torch.equal(confusion, wanted)
    assert loss.dtype == torch.float64
    assert torch.allclose(loss, cross_entropy_sum(logits, target, weight))


def test_the_most_probable_class_is_argmax_s() -> None:
    logits = torch.randint(0, 3, (2, 255, 5, 6)).float()  # of equal ones the first
    logits[0, 7, 0, 0], logits[0, 3, 0, 1] = torch.inf, -torch.inf
    assert torch.equal(most_probable(logits).long(), logits.argmax(1))
    logits[:, 5] = torch.nan
    assert most_probable(logits).max() < 255
