"""Checkpoint folders that are whole or not there: written aside, checked by a manifest, found again after any death.

A checkpoint is `checkpoint-<step>`, complete when its `manifest.json`, written last, names every file's size and
SHA-256. While it is written its name ends in `.partial`; the rename is the moment from which it exists.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PARTIAL = ".partial"
_NAME = re.compile(r"checkpoint-(\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class RunStopped(RuntimeError):
    """A run that cannot go on; the message is one sentence that says why and how to continue."""


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(_NAME.fullmatch(folder.name)[1])


def list_checkpoints(run: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not; none where there is no such folder."""
    run = Path(run)
    found = [path for path in run.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()] if run.is_dir() else []
    return sorted(found, key=checkpoint_step)


def fault(folder: str | Path, *, checksums: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words, or None.

    Args:
        folder: the checkpoint.
        checksums: read every byte; without, names and sizes alone are compared.
    """
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes instead of {entry['size']}"
            if checksums and _sha256(path) != entry["sha256"]:
                return f"{name} has another checksum than when it was written"
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"its {MANIFEST} is not readable"
    return None


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


def complete_checkpoint(partial: Path) -> Path:
    """Turn a folder whose name ends in `.partial` and whose files are all written into a checkpoint.

    Its files are flushed to the disk before the rename, so that a power failure leaves either the whole checkpoint or
    none. A folder that already has the name, damaged or written by a life before this one, gives way.
    """
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    paths = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {}
    for path in paths:
        _flush(path)
        entries[path.relative_to(partial).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": entries}, indent=2) + "\n", encoding="utf-8")
    _flush(manifest)
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _flush(folder)
    replaced = final.rename(final.with_name(f"{final.name}.replaced{PARTIAL}")) if final.exists() else None
    partial.rename(final)
    _flush(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


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


@contextmanager
def full_disk_in_words(run: str | Path) -> Iterator[None]:
    """Turn the errors of a full disk into one sentence, after removing what was half written.

    Raises:
        RunStopped: the disk, or the user's quota on it, is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors hands the operating system's error on as text alone.
        numbers = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]
        if not set(numbers) & set(_FULL):
            raise
        remove_partial(run)
        last = newest_checkpoint(run)
        place = f"the last good checkpoint is {last.name}" if last else "there is no checkpoint yet"
        raise RunStopped(
            f"the disk of {run} is full, no checkpoint can be written; {place}: free some space, or lower "
            "--save_total_limit, and go on with --resume."
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the disk keep a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
