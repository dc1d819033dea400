"""What a run is a run of: remembered when it starts, compared when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .whole_folders import write_whole

FILE = "identity.json"


def has_begun(run: str | Path) -> bool:
    """Whether a run was ever started in this folder."""
    return Path(run, FILE).is_file()


def check_same_run(
    run: str | Path,
    settings: Mapping[str, Any],
    *,
    goes_on: bool,
    allow_changes: bool,
    write: bool,
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Remember `settings` in the run's folder; of a run that goes on, compare them with those it was started with.

    Args:
        run: the run's folder.
        settings: all that decides what is learned, as JSON values: teacher, student, data, masks, seed, step size.
        goes_on: whether the run was started before.
        allow_changes: go on with other settings all the same; they are remembered from now on.
        write: whether this process writes.
        earlier: what runs of before a setting existed did, by the setting's name.

    Raises:
        ValueError: a setting differs; the sentence names each with both values.
    """
    path = Path(run, FILE)
    settings = json.loads(json.dumps(settings))
    if goes_on and path.is_file() and not allow_changes:
        before = {**(earlier or {}), **json.loads(path.read_text(encoding="utf-8"))}
        changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {before.get(name)!r}, now {settings.get(name)!r}" for name in changed)
            raise ValueError(
                f"the run in {run} was started with other settings ({differences}): set them back, choose another "
                "--output_dir, or add --allow_changes to go on all the same."
            )
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def weights_digest(module: nn.Module) -> str:
    """BLAKE2b of all parameters and buffers, to know a network whose file has changed under the same name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
