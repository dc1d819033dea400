"""Commands of which one setting decides which other settings there are: the method, the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..finetuning import TASKS, FineTuningArguments
from ..methods.registry import METHODS
from .recipe import parse_recipe, recipe_value


def parse_method(
    types: Sequence[type] = (), arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple:
    """Read recipe and flags into the settings of the method that they name (default: hgkd), and into `types`.

    Only the settings of that method are known: those of another are an error. See `parse_recipe`.

    Raises:
        ValueError: there is no such method.
    """
    return parse_recipe((_chosen("method", METHODS, "hgkd", arguments), *types), arguments, description)


def parse_task(arguments: Sequence[str] | None = None, description: str | None = None) -> tuple:
    """Read recipe and flags into the settings of the task that they name, and `FineTuningArguments`.

    Only the settings of that task are known: those of another are an error. See `parse_recipe`.

    Raises:
        ValueError: there is no such task.
    """
    task = _chosen("task", TASKS, "image-classification", arguments)
    return parse_recipe((task, FineTuningArguments), arguments, description)


def _chosen(key: str, choices: Mapping[str, type], default: str, arguments: Sequence[str] | None) -> type:
    """The settings' type that flags or else the recipe name.

    Raises:
        ValueError: it is none of the choices.
    """
    name = recipe_value(key, arguments) or default
    if name not in choices:
        raise ValueError(f"{key} is {name!r}: choose one of {', '.join(choices)} (--{key}).")
    return choices[name]
