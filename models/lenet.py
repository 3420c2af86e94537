"""LeNet as Dive into Deep Learning trains it on several GPUs: small, and without BatchNorm."""

from torch import Tensor, nn


class LeNet(nn.Sequential):
    """conv 20@3x3 → pool → conv 50@5x5 → pool → 800 → 128 → classes, with ReLU.

    The network of https://d2l.ai/chapter_computational-performance/multiple-gpus.html, which takes
    28x28 pixels. A last pooling to 4x4, the identity at that size, admits all images from 14x14
    pixels on.

    Args:
        num_classes: number of logits.
        in_channels: 1 in the book; the images of the training scripts have 3.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 20, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(50 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → logits (B, num_classes)."""
        return super().forward(x)
