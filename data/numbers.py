"""Whole numbers in whatever notation users' files have them."""

from typing import Any

LARGEST = 2**63 - 1


def whole(value: Any) -> int:
    """A whole number in any notation: 3, 3.0, "3", "03", "3.0", "3e0".

    Raises:
        ValueError: it is none, or one of more than 64 bits.
    """
    if isinstance(value, str) and "_" not in value:
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or abs(value) > LARGEST:
        raise ValueError(f"{value!s:.40} is no whole number")
    return int(value)  # True is 1
