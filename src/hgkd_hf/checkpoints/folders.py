"""Checkpoint folders that are whole or not there: written aside, checked by a manifest, found again after any death.

A checkpoint is `checkpoint-<step>`, complete when its `manifest.json`, written last, names every file's size and
SHA-256. While it is written its name ends in `.partial`; the rename is the moment from which it exists.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

from .whole_folders import PARTIAL, fault, why_full

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "training_args.json"  # in every checkpoint
_SEEN_WITHIN = 5  # seconds that a file may take to be seen by all
_NAME = re.compile(r"checkpoint-(\d+)")


class RunStopped(RuntimeError):
    """A run that cannot continue; the message is one sentence that says why and how to continue."""


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name.

    Raises:
        ValueError: it has no such name.
    """
    found = _NAME.fullmatch(folder.name)
    if found is None:
        raise ValueError(
            f"{folder} is not named checkpoint-<step>: give a checkpoint of a run (resume_from_checkpoint)."
        )
    return int(found[1])


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not; none where there is no such folder.

    Raises:
        ValueError: a file, or a link to nothing, has the name of a checkpoint.
    """
    run = Path(run)
    found = [path for path in run.iterdir() if _NAME.fullmatch(path.name)] if run.is_dir() else []
    for path in found:
        if not path.is_dir():
            kind = "a link to nothing" if path.is_symlink() else "a file"
            raise ValueError(
                f"{path} is {kind}, not a checkpoint's folder: move it away, or choose another --output_dir."
            )
    return sorted(found, key=checkpoint_step)


def newest_checkpoint(run: str | Path) -> Path | None:
    """The newest whole checkpoint of a run, or None; damaged ones that are newer are named in the log."""
    for folder in reversed(list_checkpoints(run)):
        wrong = fault(folder)
        if wrong is None:
            return folder
        logger.warning("%s is damaged (%s): the checkpoint before it is taken.", folder, wrong)
    return None


def remove_partial(run: str | Path) -> None:
    """Delete what a killed process had not finished writing."""
    for path in Path(run).glob(f"checkpoint-*{PARTIAL}"):
        shutil.rmtree(path)


def prune_checkpoints(run: str | Path, limit: int | None, best_step: int | None = None) -> None:
    """Delete the oldest checkpoints beyond `limit`; never the newest whole one, never the best.

    Damaged ones count for nothing: they are deleted once a whole one is newer.

    Args:
        run: the run's folder.
        limit: number of whole checkpoints to keep, the best not counted in; None or 0 = all.
        best_step: step of the best checkpoint.
    """
    if not limit or limit < 0:
        return
    folders = list_checkpoints(run)
    whole = [folder for folder in folders if fault(folder, checksums=False) is None]
    if not whole:
        return
    keep = set(whole[-limit:]) | {folder for folder in folders if checkpoint_step(folder) == best_step}
    for folder in folders:
        if folder not in keep and checkpoint_step(folder) < checkpoint_step(whole[-1]):
            # Renamed first: a deletion that is cut short must not leave a folder that looks like a checkpoint.
            doomed = folder.rename(folder.with_name(folder.name + PARTIAL))
            shutil.rmtree(doomed)


def check_shared(run: str | Path, accelerator: Accelerator) -> None:
    """Make sure that all processes see one folder, in which each writes its part of a checkpoint; all must call it.

    Raises:
        ValueError: some do not see what the first has written there.
    """
    if accelerator.num_processes == 1:
        return
    (name,) = broadcast_object_list([f".seen-by-all-{uuid.uuid4().hex}"])
    mark = Path(run, name)
    if accelerator.is_main_process:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    accelerator.wait_for_everyone()
    blind = [rank for rank, seen in enumerate(gather_object([_appears(mark)])) if not seen]
    if accelerator.is_main_process:
        mark.unlink()
    if blind:
        raise ValueError(
            f"of {accelerator.num_processes} processes, rank {', '.join(map(str, blind))} does not see what rank 0 "
            f"writes to {run}: let --output_dir be one folder that all machines share."
        )


def _appears(path: Path) -> bool:
    """Whether a file is there, or comes within some seconds, as over a network."""
    for _ in range(_SEEN_WITHIN):
        if path in path.parent.glob(path.name):  # lists the folder, whose entries may have been cached
            return True
        time.sleep(1)
    return False


@contextmanager
def explain_full_disk(run: str | Path) -> Iterator[None]:
    """Turn the errors of a full disk into one sentence, after removing what was half written.

    Raises:
        RunStopped: the disk, or the user's quota on it, is full, or a file would be larger than is allowed.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = why_full(error)
        if reason is None:
            raise
        remove_partial(run)
        last = newest_checkpoint(run)
        place = f"the last complete checkpoint is {last.name}" if last else "there is no checkpoint yet"
        raise RunStopped(
            f"the disk of {run} {reason}; {place}: free some space, or lower --save_total_limit, and continue with "
            "--resume."
        ) from error
