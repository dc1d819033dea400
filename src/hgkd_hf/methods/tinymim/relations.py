"""Queries, keys and values: of a stock vision transformer, and of the block that a student gets in their likeness."""

from __future__ import annotations

from torch import Tensor, nn

# What stock models name the projections.
NAMES = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}


def attention_projections(model: nn.Module) -> dict[str, nn.Linear]:
    """The projections to queries, keys and values, `q`, `k` and `v`, in the last block of a stock ViT.

    Raises:
        ValueError: it has none of their own, e.g. one for all three, or they differ in width.
    """
    layers = [(name.rpartition(".")[2], m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = {key: [m for name, m in layers if name in names][-1:] for key, names in NAMES.items()}
    widths = {m.out_features for modules in found.values() for m in modules}
    if not all(found.values()) or len(widths) > 1:
        raise ValueError(
            f"{type(model).__name__} has no projections to queries, keys and values of one width in its attention: "
            "choose a plain vision transformer, e.g. vit, deit, dinov2 or clip (--teacher)."
        )
    return {key: module for key, (module,) in found.items()}


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


class AdaptiveBlock(nn.Module):
    """Of a transformer block on the student, with the teacher's heads and width, what relations read.

    That is the norm and the projections of its attention: nothing would teach the rest. It is not exported.
    """

    def __init__(self, in_channels: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(in_channels)
        self.projections = nn.ModuleDict({name: nn.Linear(in_channels, width) for name in NAMES})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens (B, N, C) to `q`, `k` and `v`, each (B, heads, N, width / heads)."""
        tokens = self.norm(tokens)
        return {name: split_heads(layer(tokens), self.heads) for name, layer in self.projections.items()}
