"""Folders and files that are whole or not there: written aside, then renamed; folders with a manifest of checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
PARTIAL = ".partial"
# Why the system takes no more bytes, as the subject's end of a sentence.
_FULL = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user (quota)",
    errno.EFBIG: "takes no file of this size (ulimit -f, or a limit of the file system)",
}


def fault(folder: str | Path, *, checksums: bool = True) -> str | None:
    """What is wrong with a folder, in one clause, or None.

    Args:
        folder: one that `complete_folder` completed.
        checksums: read every byte; without, names and sizes alone are compared.
    """
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not files:
            return f"its {MANIFEST} lists no file"
        for name, entry in files.items():
            if "\\" in name or not Path(os.path.normpath(folder / name)).is_relative_to(os.path.normpath(folder)):
                return f"its {MANIFEST} names {name!r}, which lies outside of it"
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


def complete_folder(partial: Path) -> Path:
    """Turn a folder whose name ends in `.partial` and whose files are all written into a whole one.

    Its files are flushed to the disk before the rename, so that a power failure leaves either the whole folder or
    none. A folder that already has the name, damaged or written by a life before this one, is replaced.
    """
    final = partial.with_name(partial.name.removesuffix(PARTIAL))
    paths = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {}
    set_permissions(partial)
    for path in paths:
        _flush(path)
        entries[path.relative_to(partial).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": entries}, indent=2) + "\n", encoding="utf-8")
    _flush(manifest)
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _flush(folder)
    replaced = None
    if os.path.lexists(final):
        replaced = final.rename(final.with_name(f"{final.name}.replaced{PARTIAL}"))
    partial.rename(final)
    _flush(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)
    return final


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which reach `folder` when all are written, or not at all.

    What `folder` holds under other names stays. Without a manifest: for folders that people and other programs read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"writing{PARTIAL}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        set_permissions(aside)
        for path in sorted(path for path in aside.rglob("*") if path.is_file()):
            final = folder / path.relative_to(aside)
            final.parent.mkdir(parents=True, exist_ok=True)
            path.replace(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def set_permissions(folder: Path) -> None:
    """Give all files of a folder the permissions of the process's umask; safetensors writes for the owner alone."""
    mask = os.umask(0o077)  # there is no way to ask for it
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never seen half written."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def why_full(error: Exception) -> str | None:
    """What an error says of a disk that takes no more, e.g. "is full"; None if it says no such thing."""
    # safetensors passes the operating system's error on as text alone.
    numbers = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]
    return next((_FULL[number] for number in numbers if number in _FULL), None)


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
