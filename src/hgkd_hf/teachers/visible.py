"""A vision transformer that sees the visible tokens alone, as the encoder of a MAE does (arXiv:2111.06377, 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def visible_tokens(hidden: Tensor) -> Tensor:
    """Row-major places (B, V), ascending, of the tokens of each image that `hidden` (B, th, tw) bool leaves.

    Raises:
        ValueError: images differ in their number of visible tokens, or have none.
    """
    visible = ~hidden.flatten(1)
    counts = visible.sum(1).tolist()
    if set(counts) != {counts[0]} or not counts[0]:
        raise ValueError(
            f"a teacher that drops the hidden patches needs the same number (above 0) of visible ones in every image, "
            f"but bool_masked_pos leaves {counts}."
        )
    return visible.nonzero()[:, 1].view(len(visible), -1)


def drop_others(places: Tensor, tokens: int) -> Callable[[nn.Module, tuple], tuple]:
    """Pre-hook for the first block: of an image's `tokens` last tokens, those at `places` stay; special ones do."""

    def hook(module: nn.Module, args: tuple) -> tuple:
        states, *rest = args
        special, patches = states[:, :-tokens], states[:, -tokens:]
        kept = patches.gather(1, places.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        return torch.cat([special, kept], 1), *rest

    return hook


def put_back(tokens: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Visible tokens (B, V, D) on their map (B, D, *grid), zeros elsewhere."""
    whole = tokens.new_zeros(len(tokens), grid[0] * grid[1], tokens.shape[-1])
    whole = whole.scatter(1, places.unsqueeze(-1).expand_as(tokens), tokens)
    return whole.mT.unflatten(2, grid)
