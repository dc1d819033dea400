"""Training state on disk without pickle: tensors as safetensors, all else as JSON in the same file's header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KEY = "state"


def save_state(state: Any, path: str | Path) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None to one safetensors file.

    Raises:
        TypeError: the state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    tree = _to_tree(state, tensors)
    save_file(tensors, path, metadata={_KEY: json.dumps(tree)})


def load_state(path: str | Path) -> Any:
    """What `save_state` wrote, equal in types, values and strides, on the CPU.

    Raises:
        ValueError: the file is no such state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ValueError(f"its header has no {_KEY!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        return _from_tree(json.loads(metadata[_KEY]), tensors)
    except (SafetensorError, ValueError, TypeError, LookupError, RuntimeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} holds no training state of this package ({reason}).") from error


def _to_tree(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`: every container and tensor is {kind: content}, so that keys of any type come back."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # Strides are kept: kernels may round the odd elements of another layout differently.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": [name, list(value.stride())]}
    if isinstance(value, dict):
        return {"dict": [[_to_tree(key, tensors), _to_tree(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_to_tree(entry, tensors) for entry in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a training state holds a {type(value).__name__}, which has no safe form on disk.")


def _from_tree(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        name, strides = content
        stored = tensors[name]
        return torch.empty_strided(stored.shape, strides, dtype=stored.dtype).copy_(stored)
    if kind == "dict":
        return {_from_tree(key, tensors): _from_tree(entry, tensors) for key, entry in content}
    entries = [_from_tree(entry, tensors) for entry in content]
    return tuple(entries) if kind == "tuple" else entries
