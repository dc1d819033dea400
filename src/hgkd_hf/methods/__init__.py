"""What a training script needs to know of a method: its settings, its model, its samples, how it is described."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipe import parse_recipe, recipe_value
from .hgkd import HGKDMethod
from .kd import KDMethod
from .manifold import ManifoldMethod
from .method import Method
from .msdcrd import MSDCRDMethod
from .rob import RoBMethod

METHODS: dict[str, type[Method]] = {
    "hgkd": HGKDMethod,
    "rob": RoBMethod,
    "manifold": ManifoldMethod,
    "msdcrd": MSDCRDMethod,
    "kd": KDMethod,
}

__all__ = ["METHODS", "Method", "parse_method"]


def parse_method(
    types: Sequence[type] = (), arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple:
    """Read recipe and flags into the settings of the method that they name (default: hgkd), and into `types`.

    Only the settings of that method are known: those of another are an error. See `parse_recipe`.

    Raises:
        ValueError: there is no such method.
    """
    name = recipe_value("method", arguments) or "hgkd"
    if name not in METHODS:
        raise ValueError(f"method is {name!r}: choose one of {', '.join(METHODS)} (--method).")
    method, *others = parse_recipe((METHODS[name], *types), arguments, description)
    return method, *others
