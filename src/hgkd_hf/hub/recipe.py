"""What a recipe on the Hub says: what is learned, measured and logged, and from which repositories.

What leaves a machine, credentials, places of files, trackers and the use of hardware are said on the command line
alone: they are neither published nor taken from elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..checkpoints.yaml_text import load_yaml
from ..methods.base.method import Method
from ..methods.registry import METHODS
from ..students.presets import PRESETS
from ..training.arguments import DistillationArguments
from .sources import is_repo_id
from .untrusted import WORD, is_plain, read, shown

# Of `DistillationArguments`: numbers, switches and words of fixed sets; those of later versions of transformers are
# not among them until they are added here.
TRAINING_SETTINGS = """
per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps seed data_seed base_learning_rate
learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim weight_decay adam_beta1 adam_beta2 adam_epsilon
max_grad_norm sync_batch_norm precision bf16 fp16 tf32 activation_checkpointing gradient_checkpointing eval_strategy
eval_steps eval_delay per_device_eval_batch_size knn_k knn_temperature metric_for_best_model greater_is_better
logging_strategy logging_steps logging_first_step save_strategy save_steps save_total_limit
"""
# Of the settings that all methods have.
METHOD_SETTINGS = """
method dataset dataset_config dataset_revision split image_column label_column streaming shuffle_buffer
max_samples teacher teacher_revision teacher_layers teacher_image_size teacher_dtype teacher_cache student
student_pretrained student_revision image_size crop_scale flip_probability knn_split knn_bank_samples knn_query_samples
"""
# What one command is to do, and what it may open: neither published nor taken.
COMMAND_SETTINGS = ("resume", "dry_run", "allow_remote_images", "teacher_head")
# Settings that name a repository, or a place on this machine: a recipe from the Hub may name repositories alone.
SOURCES = ("dataset", "teacher", "teacher_cache", "student")


def settings_on_hub(method: str) -> set[str]:
    """The names of the settings of a method that a recipe on the Hub may give.

    Of those that only this method has, free text (the name of a file) is left out.
    """
    own = {item.name for item in fields(METHODS[method])} - {item.name for item in fields(Method)}
    hints = get_type_hints(METHODS[method])
    own = {name for name in own if hints[name] not in (str, str | None, list[str])}
    return {*TRAINING_SETTINGS.split(), *METHOD_SETTINGS.split(), *own}


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that its recipe on the Hub tells."""
    training = {item.name for item in fields(DistillationArguments)}.difference(TRAINING_SETTINGS.split())
    return {name: value for name, value in settings.items() if name not in training | set(COMMAND_SETTINGS)}


def checked_arguments(path: Path) -> dict[str, Any]:
    """Of a checkpoint's `training_args.json` what a recipe from the Hub may set.

    Raises:
        ValueError: it is not readable.
    """
    return {k: v for k, v in read(path).items() if k in TRAINING_SETTINGS.split() and (v is None or is_plain(v))}


def checked_recipe(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a recipe from the Hub may set.

    Returns:
        The settings that are taken, and, of those that are left out and are not the default anyway, why.

    Raises:
        ValueError: it is no recipe, or of no method of this version.
    """
    values = read(path, _load_yaml)
    if "task" in values:
        raise ValueError("its recipe is of a fine-tuning, which is not resumed from the Hub")
    name = values.get("method", "hgkd")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"its recipe is of the method {shown(name)}, but there are {', '.join(METHODS)}")
    known: dict[str, Field] = {item.name: item for item in (*fields(METHODS[name]), *fields(DistillationArguments))}
    allowed = settings_on_hub(name)
    taken, left_out = {}, {}
    for key, value in values.items():
        if key not in allowed:
            why = "is for the command line alone to say" if key in known else f"is not a setting of method {name} here"
            if value and (key not in known or value != _default(known[key])):
                left_out[key if key in known else shown(key)] = f"{shown(value)} {why}"
        elif key in SOURCES and not _is_source(key, value):
            left_out[key] = f"{shown(value)} is not a Hub id `owner/name`, or names something on this machine"
        elif key not in SOURCES and not is_plain(value):
            left_out[key] = f"{shown(value)} is neither a number nor a plain word"
        else:
            taken[key] = value
    return taken, left_out


def _load_yaml(text: str) -> Any:
    """YAML without aliases, by which a few lines would stand for any amount of data."""
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("aliases")
    return load_yaml(text)


def _is_source(key: str, value: Any) -> bool:
    """Whether a dataset, teacher or student is one of the Hub, or one that needs no files: a preset or a config.

    Of several teachers, whether all are.
    """
    if key == "teacher" and isinstance(value, list):
        return all(_is_source(key, name) for name in value)
    if key == "student" and isinstance(value, str):
        if value in PRESETS:
            return True
        if value.startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return False
    if isinstance(value, dict):
        return key == "student" and is_plain(value)
    parts = value.split("/") if isinstance(value, str) else []
    return len(parts) == 2 and all(map(WORD.fullmatch, parts)) and is_repo_id(value) and not os.path.exists(value)


def _default(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()
