"""How commands end: a sentence for what a user can fix, a traceback for what only we can."""

from __future__ import annotations

import errno
import gc
import logging
import sys
from collections.abc import Callable
from typing import Any

from .output import output
from .parser import VERBOSE

logger = logging.getLogger(__name__)


def run_script(main: Callable[..., Any], *arguments: Any) -> None:
    """Call `main` with `arguments`; an expected error becomes `error: <its sentence>` and exit code 1.

    The first argument, if any, is the command line; default: the process's. When `main` is done, this process leaves
    the others that it worked with: torch's threads for them do not always survive the end of the interpreter.
    """
    with output(verbose=VERBOSE in (arguments[0] if arguments else sys.argv)):
        try:
            main(*arguments)
            leave_processes()
        except Exception as error:
            told = sentence(error)
            if told is None:
                raise
            logger.info("error: %s", told, exc_info=True)
            sys.exit(f"error: {told}")


def leave_processes() -> None:
    """End the process group, if torch is loaded and there is one."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            gc.collect()  # of a trainer's cycles: a model under DDP keeps the group, and so its threads, alive
            dist.destroy_process_group()


def sentence(error: Exception) -> str | None:
    """What to tell of an error in one line; None if it is not an expected one, whose traceback is wanted.

    Of an error that a data loader's worker sent over, its own message without the worker's traceback.
    """
    import torch  # here, because --help is answered without

    from ..checkpoints.folders import RunStopped
    from ..data.reading import StreamError
    from ..hub import PushError

    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in lines[0]:
        return (
            f"there is not enough memory ({' '.join(lines[0].split())}): lower --per_device_train_batch_size and "
            "raise --gradient_accumulation_steps by as much, or choose a smaller student, decoder or teacher."
        )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]!r}... is too long for the name of a file or folder: give a shorter one."
    expected = (ValueError, FileNotFoundError, PermissionError, ConnectionError, RunStopped, StreamError, PushError)
    # transformers' word for a model that is not there is a bare OSError; those of the system have a number.
    absent = type(error) is OSError and error.errno is None
    if not (absent or isinstance(error, expected)):
        return None
    if len(lines) > 1 and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(" ".join(lines).split())
