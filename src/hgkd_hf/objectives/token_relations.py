"""The tokens of a student relate to each other as its teacher's do, inside one layer of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


class AdaptiveBlock(nn.Module):
    """Of a transformer block on the student, with the teacher's heads and width, what relations read.

    That is the norm and the projections of its attention: nothing would teach the rest.
    """

    def __init__(self, in_channels: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(in_channels)
        self.projections = nn.ModuleDict({name: nn.Linear(in_channels, width) for name in "qkv"})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens (B, N, C) to queries, keys and values, `q`, `k` and `v`, each (B, heads, N, width / heads)."""
        tokens = self.norm(tokens)
        return {name: split_heads(layer(tokens), self.heads) for name, layer in self.projections.items()}


def log_relations(left: Tensor, right: Tensor) -> Tensor:
    """log softmax(left right^T / sqrt(d)) over the last axis: (B, heads, N, d), twice -> (B, heads, N, N)."""
    return (left @ right.mT / math.sqrt(left.shape[-1])).log_softmax(-1)


def relation_losses(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], relations: Sequence[str]
) -> dict[str, Tensor]:
    """KL(teacher || student) of each relation, summed over keys, mean over images, heads and queries.

    Source: TinyMIM (2301.01296): queries with keys and values with values; MiniLM's successor (2012.15828), which it
    follows, compares queries with queries and keys with keys. Widths d may differ, heads and tokens may not.

    Args:
        student: `q`, `k` and `v`, each (B, heads, N, d_S).
        teacher: the same, (B, heads, N, d_T), constant.
        relations: pairs of their names, e.g. `("qk", "vv")`.

    Returns:
        A scalar for each relation, by its name.

    Raises:
        ValueError: B, heads or N differ.
    """
    losses = {}
    for name in relations:
        ours, theirs = (log_relations(*(side[letter].float() for letter in name)) for side in (student, teacher))
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the student's relations {name} (B, heads, N, N) are {tuple(ours.shape)}, but the teacher's are "
                f"{tuple(theirs.shape)}."
            )
        losses[name] = F.kl_div(ours, theirs.detach(), reduction="none", log_target=True).sum(-1).mean()
    return losses
