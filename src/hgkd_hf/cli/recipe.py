"""Recipes: a YAML file sets a script's defaults, flags override it, and a key that nobody reads is an error."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..checkpoints.run_files import RECIPE_FILE
from ..checkpoints.yaml_text import load_yaml
from ..methods.base.settings import Settings, as_list
from ..students.import_path import is_import_path
from .parser import settings_parser

if TYPE_CHECKING:
    from transformers import HfArgumentParser

RECIPES = Path(__file__).parents[1] / "recipes"  # which the package brings
# Settings that say how a command proceeds, not what a run is.
_OF_THE_COMMAND = ("resume", "dry_run", "allow_changes")
# Settings of `TrainingArguments` until transformers 4, found in many recipes, and what took their place.
DROPPED = {
    "evaluation_strategy": "'eval_strategy'",
    "warmup_ratio": "'warmup_steps', where a number below 1 is a share",
    "no_cuda": "'use_cpu'",
    "overwrite_output_dir": "'resume', or another 'output_dir'",
    "per_gpu_train_batch_size": "'per_device_train_batch_size'",
    "save_safetensors": "nothing, models are always safetensors",
}


def parse_recipe(
    types: Sequence[type],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    command: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> tuple:
    """Read `--recipe FILE` and flags into one instance of each dataclass in `types`.

    Settings that are `auto` in a run that is resumed get what the word came to before, from the run's recipe.

    Functions that `--student` or `--allow_code` name, here and not in a recipe, may build students from now on.

    Args:
        types: dataclasses; their fields are the recipe's keys and the flags.
        arguments: the command line; default: the process's.
        description: what `--help` begins with.
        command: the command's name, for `--help` and errors of the command line.
        defaults: of some settings, where others than the dataclasses'; names that no dataclass has are left out.

    Raises:
        ValueError: the recipe is no mapping, a key is no field (the message names the nearest one) or has no value.
        FileNotFoundError: there is no such recipe.
        SystemExit: a flag is unknown or its value malformed (by argparse).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = settings_parser(types, command, description)
    path = _flag_value("recipe", given)
    known = {field.name for kind in types for field in fields(kind) if field.init}
    # As flags in front of the real ones, defaults and a recipe's values meet the same checks, and later flags win.
    flags = _as_flags({name: value for name, value in (defaults or {}).items() if name in known}, known, "")
    if path is not None:
        flags += _as_flags(read_recipe(path), known, path)
    *instances, others = _instances(parser, flags + given)
    if settled := _settled_before(instances, flags + given):
        *instances, _ = _instances(parser, flags + given + settled)
    # Read from no recipe: `_as_flags` refuses a key that is no setting, and a flag in a list.
    allow_named_code(others.allow_code, _flag_value("student", given))
    return tuple(instances)


def _instances(parser: HfArgumentParser, arguments: list[str]) -> tuple:
    """The dataclasses that these flags give, and the namespace of the other flags."""
    try:
        return parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
    except Exception as error:  # settings are refused with many kinds of errors, all of them the user's to correct
        raise ValueError(f"these settings do not fit: {' '.join(str(error).split())}") from error


def allow_named_code(paths: Sequence[str], student: str | None) -> None:
    """Let functions build students that the command line itself names: by `--allow_code`, or as `--student`."""
    named = [*paths, student] if student is not None and is_import_path(student) else paths
    if named:
        from ..students.code import allow_code  # needs torch

        for path in named:
            allow_code(path)


def recipe_value(name: str, arguments: Sequence[str] | None = None) -> str | None:
    """What flags or else the recipe give for one setting, before all of them are parsed; None if neither does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    values = recipe_values(name, arguments)
    return values[0] if values else None


def recipe_values(name: str, arguments: Sequence[str]) -> list[str]:
    """`recipe_value` of a setting that may have several; none if neither gives one."""
    values, path = _flag_values(name, arguments), _flag_value("recipe", arguments)
    if not values and path is not None:
        values = as_list(read_recipe(path).get(name))
    return [str(value) for value in values]


def to_recipe(*settings: Any) -> str:
    """Dataclasses of settings as the recipe that gives them again: YAML, without tokens and what is not set."""
    values: dict[str, Any] = {}
    for part in settings:
        values |= part.to_dict() if hasattr(part, "to_dict") else asdict(part)
    kept = {
        name: value
        for name, value in values.items()
        if value is not None and value not in ([], {}, "") and name not in _OF_THE_COMMAND
        if not name.endswith("_token")
    }
    return yaml.safe_dump(kept, sort_keys=False)


def _settled_before(instances: Sequence[Any], arguments: list[str]) -> list[str]:
    """Flags for what only the run that is resumed can tell.

    These are the final values of settings that are `auto`, and the effect (`before`) of settings that did not exist
    when it was started, unless recipe or flags give them.
    """
    training = next((part for part in instances if hasattr(part, "output_dir")), None)
    if training is None or not any(getattr(part, "resume", False) for part in instances):
        return []
    path = Path(training.output_dir, RECIPE_FILE)
    if not path.is_file():
        return []
    recorded = read_recipe(path)
    settled = {name: recorded[name] for name in getattr(training, "auto", ()) if recorded.get(name, "auto") != "auto"}
    earlier = (part.before() for part in instances if isinstance(part, Settings))
    for name, value in (item for values in earlier for item in values.items()):
        if name not in recorded and recipe_value(name, arguments) is None:
            settled[name] = value
    return [f"--{name}={value}" for name, value in settled.items()]


def _as_flags(values: dict[str, Any], known: set[str], path: str) -> list[str]:
    flags = []
    for key, value in values.items():
        if key not in known:
            if key in DROPPED:
                raise ValueError(f"recipe {path} has the key {key!r} of older versions: use {DROPPED[key]}.")
            near = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"recipe {path} has the key {key!r}, which no setting reads{hint}")
        if value is None:
            raise ValueError(f"recipe {path} gives no value for {key!r}: give one, or leave the key out.")
        entries = value if isinstance(value, list) else [value]
        texts = [json.dumps(entry) if isinstance(entry, dict | list | bool) else str(entry) for entry in entries]
        if isinstance(value, list) and (flag := next((text for text in texts if text.startswith("--")), None)):
            raise ValueError(f"recipe {path} has {flag!r} in the list of {key!r}, which would be a flag of its own.")
        flags += [f"--{key}", *texts] if isinstance(value, list) else [f"--{key}={texts[0]}"]
    return flags


def recipe_file(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that the package brings.

    Raises:
        FileNotFoundError: it is neither; the nearest names are told.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in RECIPES.rglob("*.yaml")}
    if str(name) not in shipped:
        near = difflib.get_close_matches(Path(name).stem, shipped, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give a file, or one of {', '.join(sorted(shipped))}."
        raise FileNotFoundError(f"there is no recipe {str(name)!r} (--recipe): {hint}")
    return shipped[str(name)]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping of a recipe, a file or one that the package brings; plain YAML values only."""
    path = recipe_file(path)
    try:
        values = load_yaml(path.read_text(encoding="utf-8")) or {}
    except ValueError as error:
        raise ValueError(f"recipe {path} is not readable as YAML: {error}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"recipe {path} must map settings to values, one `key: value` a line.")
    return values


def _flag_value(name: str, arguments: Sequence[str]) -> str | None:
    """The value of the last `--name VALUE` or `--name=VALUE`."""
    return next(iter(_flag_values(name, arguments)), None)


def _flag_values(name: str, arguments: Sequence[str]) -> list[str]:
    """The values of the last `--name VALUE ...` or `--name=VALUE`; the parser takes dashes for underscores too."""
    values: list[str] = []
    for position, argument in enumerate(arguments, 1):
        flag, equals, text = argument.partition("=")
        if not flag.startswith("--") or flag[2:].replace("-", "_") != name:
            continue
        if equals:
            values = [text]
        elif position < len(arguments):
            first, *others = arguments[position:]
            values = [first, *takewhile(lambda word: not word.startswith("--"), others)]
    return values
