"""How the scripts end: a sentence for what a user can mend, a traceback for what only we can."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .checkpoints import RunStopped
from .data.reading import StreamError
from .hub import PushError

EXPECTED = (ValueError, FileNotFoundError, PermissionError, RunStopped, StreamError, PushError)


def run_script(main: Callable[[], Any]) -> None:
    """Call `main`; an expected error becomes `error: <its sentence>` and exit code 1."""
    try:
        main()
    except EXPECTED as error:
        sys.exit(f"error: {sentence(error)}")


def sentence(error: Exception) -> str:
    """The message in one line; of an error that a data loader's worker sent over, its own without the traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(" ".join(lines).split()) or type(error).__name__
