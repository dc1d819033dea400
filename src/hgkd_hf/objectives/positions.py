"""Means over the chosen positions of a map."""

from __future__ import annotations

from torch import Tensor


def mean_of_chosen(values: Tensor, chosen: Tensor, none_chosen: str) -> Tensor:
    """Mean of `values` where `chosen`, as a scalar: a weighted mean, whose shapes do not depend on the choice.

    Args:
        values: any shape.
        chosen: bool, the same shape.
        none_chosen: the message of the error.

    Raises:
        ValueError: nothing is chosen. On an accelerator, which would have to be waited for, the mean is NaN instead,
            which training refuses.
    """
    count = chosen.sum()
    if count.device.type == "cpu" and count.numpy() == 0:
        raise ValueError(none_chosen)
    return values.masked_fill(~chosen, 0).sum() / count
