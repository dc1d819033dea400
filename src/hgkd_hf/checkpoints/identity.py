"""What a run is a run of: recorded when it starts, compared when it is resumed."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .folders import ARGUMENTS_FILE, list_checkpoints
from .whole_folders import write_whole

logger = logging.getLogger(__name__)

FILE = "identity.json"
ALL = "all"  # the word of --allow_changes


def has_begun(run: str | Path) -> bool:
    """Whether a run was ever started in this folder."""
    return Path(run, FILE).is_file()


def check_same_run(
    run: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    write: bool,
    allow_changes: Sequence[str] = (),
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Record `settings` in the run's folder; of a run that is resumed, compare them with those it was started with.

    Changes that are allowed, and settings that the record does not know since it is older than they are, are named in
    the log, and recorded from now on.

    Args:
        run: the run's folder.
        settings: all that decides what is learned, as JSON values.
        resume: whether the run was started before.
        write: whether this process writes.
        allow_changes: names of settings that may differ, or "all".
        earlier: what runs of before a setting existed did, by the setting's name.

    Raises:
        ValueError: a setting differs, and the sentence names each with both values; `allow_changes` names none of
            the settings; or the record cannot be read.
    """
    path, settings = Path(run, FILE), json.loads(json.dumps(settings))
    for name in allow_changes:
        if name not in settings and name != ALL:
            near = difflib.get_close_matches(name, settings, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes settings that decide what is learned, or {ALL}."
            raise ValueError(f"--allow_changes {name}: there is no such setting to compare; {hint}")
    if resume and path.is_file():
        before = {**(earlier or {}), **_arguments(run), **_read(path)}
        changed = [name for name in settings if name in before and before[name] != settings[name]]
        refused = [name for name in changed if name not in allow_changes and ALL not in allow_changes]
        if refused:
            raise ValueError(
                f"the run in {run} was started with other settings ({_differences(refused, before, settings)}): set "
                "them back, choose another --output_dir, or accept the changes with --allow_changes "
                f"{' '.join(refused)}."
            )
        if write and changed:
            logger.warning("Resumed with changed settings: %s.", _differences(changed, before, settings))
        if write and (unknown := [name for name in settings if name not in before]):
            logger.warning("%s does not record %s: resumed with what they are now.", path, ", ".join(unknown))
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2) + "\n")


def _differences(names: Sequence[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in names)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}), so that it is not known what the run was started with: restore it, or "
            "delete it to resume with the settings as they are."
        ) from error


def _arguments(run: str | Path) -> dict[str, Any]:
    """The training arguments that the newest checkpoint holds: records of earlier versions lack them."""
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            arguments = dict(json.loads((checkpoint / ARGUMENTS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        # These two were not as the user had set them: asked for as "auto", and set for every stream.
        return {name: value for name, value in arguments.items() if name not in ("precision", "ignore_data_skip")}
    return {}


def weights_digest(module: nn.Module) -> str:
    """BLAKE2b of all parameters and buffers, to know a network whose file has changed under the same name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
