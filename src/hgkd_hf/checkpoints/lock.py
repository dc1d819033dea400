"""One process at a time trains in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

FILE = ".lock"
_held: set[Path] = set()  # by this process


@contextmanager
def run_lock(run: str | Path) -> Iterator[None]:
    """Keep other processes out of a run's folder for the duration; a process that has it may enter again.

    A POSIX record lock: the system releases it with the process, however that dies, so that none is ever stale, also
    on NFS; and the loader's workers, which outlive a killed process by seconds, do not inherit it. On a file system
    without such locks there is a warning alone.

    Raises:
        ValueError: another process has it; the sentence names process and machine.
    """
    path = Path(run).absolute() / FILE
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"{run} is in use by {_holder(file)}: wait until that run ends, stop it, or choose another "
                    "--output_dir."
                ) from error
            logger.warning("%s cannot be locked (%s): start no second run in it.", run, error)
        else:
            file.truncate(0)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M}"}
            file.write(json.dumps(holder))
            file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        return "process {pid} on {host}, since {since}".format(**json.loads(file.read()))
    except (ValueError, LookupError):  # it has not written yet
        return "another process"
