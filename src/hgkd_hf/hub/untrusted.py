"""What a repository says is data: the parts of a pulled run that are used, each checked before it is.

Files are those that a manifest lists, under names that stay inside their folder. Of JSON and YAML (`recipe.py`),
numbers are taken as numbers, words as words, and nothing as a path.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..checkpoints.whole_folders import MANIFEST, fault
from .student_card import BEFORE, METRICS, STUDENT

# The only files of a checkpoint: no code, no pickle.
_FILE = re.compile(r"(?:\w[\w.-]{0,99}/){0,4}\w[\w.-]{0,99}\.(?:json|safetensors)", re.ASCII)
_ELSEWHERE = "adapter_config.json"  # by which transformers loads the weights of another repository
# Keys of a configuration by which transformers fetches and runs code, and such whose value may name a kernel to fetch.
_CODE, _KERNELS = ("auto_map", "custom_pipelines"), ("attn_implementation", "experts_implementation")
WORD = re.compile(r"\w[\w .:%+\[\]-]{0,99}")
_LARGEST = 2**63  # a stream's number of epochs is just below


def check_names(listed: set[str]) -> None:
    """Refuse files that no checkpoint has: code, pickles, and names that may lead out of the folder.

    Args:
        listed: the files that the repository has in the checkpoint's folder, relative to it.

    Raises:
        ValueError: there is one.
    """
    for name in sorted(listed):
        if not _FILE.fullmatch(name) or name.endswith(_ELSEWHERE):
            raise ValueError(f"{shown(name)} is not a checkpoint file")


def checked_files(listed: set[str], checkpoint: Path) -> list[str]:
    """The names of a checkpoint's files, if they and nothing else stand in its manifest, and are as it says.

    Raises:
        ValueError: the manifest is absent, empty or malformed, or it lists other files; a file is damaged, asks for
            code, or names weights elsewhere.
    """
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"it has no {MANIFEST}")
    files = read(manifest).get("files")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"its {MANIFEST} lists no file")
    for name in sorted(listed.symmetric_difference([*files, MANIFEST])):
        where = f"is not in its {MANIFEST}" if name in listed else f"is in its {MANIFEST} alone"
        raise ValueError(f"{shown(name)} {where}")
    for name, entry in files.items():
        size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if not _is_count(size) or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"its {MANIFEST} gives no size and SHA-256 for {name}")
    wrong = fault(checkpoint)
    if wrong is not None:
        raise ValueError(wrong)
    for name in files:
        if name.endswith(".json"):
            _check_config(checkpoint / name, files)
        else:
            _check_tensors(checkpoint / name)
    return list(files)


def _check_tensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):  # reads the header, and compares it with the file's size
            pass
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not readable: {error}") from None


def _check_config(path: Path, files: dict[str, Any]) -> None:
    content = read(path)
    if (key := _code_key(content)) is not None:
        raise ValueError(f"{path.name} asks for code of a repository ({key})")
    if path.name.endswith(".index.json"):
        shards = content.get("weight_map")
        for shard in shards.values() if isinstance(shards, dict) else [None]:
            if shard not in files:
                raise ValueError(f"{path.name} names {shown(shard)}, which its {MANIFEST} does not list")


def _code_key(value: Any) -> str | None:
    """The first key, at any depth, by which code would be fetched."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _CODE or (key.lstrip("_") in _KERNELS and "/" in json.dumps(item)):
                return key
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for entry in entries if (found := _code_key(entry)) is not None), None)


def checked_state(path: Path) -> TrainerState:
    """What a `trainer_state.json` says in numbers, and the numbers of its log; no path and no callback's state.

    Raises:
        ValueError: `global_step` or another field is not the number that it has to be.
    """
    content, state = read(path), {}
    for field, kind in get_type_hints(TrainerState).items():
        value = content.get(field)
        is_step = field in ("global_step", "best_global_step")  # which name checkpoints
        if kind not in (int, int | None, float, float | None) or (value is None and field != "global_step"):
            continue
        if not (_is_count(value) if is_step else _is_number(value)):
            wanted = "a whole number, 0 or above" if is_step else "a number"
            raise ValueError(f"{field} in its {path.name} is {shown(value)}, but must be {wanted}")
        state[field] = value
    history = content.get("log_history")
    state["log_history"] = [numbers(entry, path) for entry in (history if isinstance(history, list) else [])]
    return TrainerState(**state)


def checked_metrics(path: Path) -> str:
    """The lines of a `metrics.jsonl`, of each its numbers.

    Raises:
        ValueError: a line holds none, or has no step.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"its {path.name} is not readable") from None
    entries = [numbers(_parsed(line, json.loads, path), path) for line in lines]
    if not all(_is_count(entry.get("step")) for entry in entries):
        raise ValueError(f"a line of {path.name} has no step")
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def checked_card(path: Path) -> dict[str, Any]:
    """Of a `card.json` what a run that is resumed adds to: the time that it took, and its results.

    Raises:
        ValueError: it is no card.
    """
    content = read(path)
    run, results = (part if isinstance(part, dict) else {} for part in map(content.get, ("run", "results")))
    card: dict[str, Any] = {"run": {k: v for k, v in run.items() if k == "seconds" and _is_number(v)}}
    for whose in (BEFORE, STUDENT):
        found = results.get(whose)
        for metric, value in found.items() if isinstance(found, dict) else ():
            if metric in METRICS and _is_number(value):
                card.setdefault("results", {}).setdefault(whose, {})[metric] = value
    return card


def read(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """The mapping that a JSON or YAML file holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = _parsed(path.read_text(encoding="utf-8"), parse, path)
    except UnicodeDecodeError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"its {path.name} is not readable")
    return content


def shown(value: Any) -> str:
    """A value from elsewhere, for a message: in quotes, without control characters, cut to some length."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a switch, a word that cannot be a path or a flag, or lists and mappings of them."""
    if isinstance(value, str):
        return bool(WORD.fullmatch(value))
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, list):
        return all(map(is_plain, value))
    return isinstance(value, bool) or _is_number(value)


def _parsed(text: str, parse: Callable[[str], Any], path: Path) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ValueError(f"its {path.name} is not readable") from None


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return abs(value) < _LARGEST if type(value) is int else type(value) is float and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def numbers(entry: Any, path: Path) -> dict[str, float | None]:
    """The numbers of an entry of a log; None for one that was not finite."""
    if not isinstance(entry, dict):
        raise ValueError(f"an entry of the log in {path.name} is not a mapping")
    return {k: v for k, v in entry.items() if WORD.fullmatch(k) and (v is None or _is_number(v))}
