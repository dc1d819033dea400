"""Commands of which one setting decides which other settings there are: the method, the task."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..finetuning import settings as tasks
from ..finetuning.settings import FineTuningSettings
from ..methods import settings as methods
from ..training.settings import TrainingSettings
from .parser import answer_help
from .recipe import parse_recipe, recipe_value, recipe_values

if TYPE_CHECKING:
    from ..finetuning.task import Task
    from ..finetuning.trainer import FineTuningArguments
    from ..methods.base.method import Method
    from ..training.arguments import DistillationArguments


def parse_method(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Method, DistillationArguments]:
    """Read recipe and flags into the settings of the method that they name (default: hgkd), and of its training.

    Only the settings of that method are known: those of another are an error. Defaults of those that a teacher's
    cache decides are the cache's. See `parse_recipe`.

    Raises:
        ValueError: there is no such method.
        FileNotFoundError: there is no such cache.
    """
    method = _chosen("method", methods.SETTINGS, "hgkd", arguments)
    answer_help((*methods.SETTINGS[method], TrainingSettings), "distill", description, arguments)
    from ..methods.registry import METHODS
    from ..teachers.cache import cache_settings
    from ..training.arguments import DistillationArguments

    cache = recipe_value("teacher_cache", arguments)
    arguments, defaults = spell_out_teacher(arguments)
    defaults |= {} if cache is None else cache_settings(cache)
    return parse_recipe((METHODS[method], DistillationArguments), arguments, description, "distill", defaults)


def spell_out_teacher(arguments: Sequence[str] | None) -> tuple[Sequence[str] | None, dict[str, Any]]:
    """The command line with Hub ids in the place of teachers' names, and the defaults that go with these teachers.

    Raises:
        ValueError: there is no such teacher (see `teacher_source`), or several have other defaults, of which neither
            flags nor a recipe choose one.
    """
    from ..teachers.named import TEACHERS, teacher_source

    arguments = sys.argv[1:] if arguments is None else arguments
    names = recipe_values("teacher", arguments)
    sources = [teacher_source(name) for name in names]
    repos = [repo for repo, _ in sources]
    if repos == names:
        return arguments, {}
    named = [TEACHERS[name].settings for name, repo in zip(names, repos) if name != repo]
    for key in dict.fromkeys(key for settings in named for key in settings):
        differ = any(settings.get(key) != named[0].get(key) for settings in named)
        if differ and recipe_value(key, arguments) is None:
            raise ValueError(
                f"the teachers {', '.join(names)} differ in their default of {key}: give one for all (--{key})."
            )
    commits = [commit for _, commit in sources]
    pinned = {"teacher_revision": [commit or "main" for commit in commits]} if any(commits) else {}
    return [*arguments, "--teacher", *repos], named[0] | pinned


def parse_task(
    arguments: Sequence[str] | None = None, description: str | None = None
) -> tuple[Task, FineTuningArguments]:
    """Read recipe and flags into the settings of the task that they name, and of its training.

    Only the settings of that task are known: those of another are an error. See `parse_recipe`.

    Raises:
        ValueError: there is no such task.
    """
    task = _chosen("task", tasks.SETTINGS, "image-classification", arguments)
    answer_help((tasks.SETTINGS[task], FineTuningSettings), "finetune", description, arguments)
    from ..finetuning.registry import TASKS
    from ..finetuning.trainer import FineTuningArguments

    return parse_recipe((TASKS[task], FineTuningArguments), arguments, description, "finetune")


def _chosen(key: str, choices: Mapping[str, Any], default: str, arguments: Sequence[str] | None) -> str:
    """The choice that flags or else the recipe name.

    Raises:
        ValueError: it is none of the choices.
    """
    name = recipe_value(key, arguments) or default
    if name not in choices:
        raise ValueError(f"{key} is {name!r}: choose one of {', '.join(choices)} (--{key}).")
    return name
