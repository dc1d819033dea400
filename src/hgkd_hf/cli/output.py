"""What a command shows: one line a phase, one progress bar, and warnings that the user can act on.

All else that this package and its libraries have to say goes to `run.log` in the run's folder, and with `--verbose` to
the terminal too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

LOG_FILE = "run.log"
LIBRARIES = ("transformers", "datasets", "huggingface_hub")  # which print what they log by handlers of their own

logger = logging.getLogger(__name__)


class _Command:
    """The command that runs, and what was logged before its folder was known."""

    def __init__(self, verbose: bool):
        self.verbose = verbose
        self.is_step = False
        self.log = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        self.console = logging.StreamHandler()
        self.console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        self.console.addFilter(self.shows)

    def shows(self, record: logging.LogRecord) -> bool:
        """Whether a record is for the terminal too."""
        ours = record.name.partition(".")[0] == "hgkd_hf"
        return not hasattr(record, "printed") and (self.verbose or (ours and record.levelno >= logging.WARNING))


_running: _Command | None = None


def show(text: str) -> None:
    """Print a line for the user; it stands in the log too."""
    printed = _running is None or not _running.is_step
    if printed:
        print(text, flush=True)
    logger.info(text, extra={"printed": True} if printed else None)


def show_facts(rows: dict[str, str]) -> None:
    """Print what a run is, one fact a line."""
    show("\n".join(f"{name:>10}: {value}" for name, value in rows.items()))


def show_table(rows: list[dict[str, str]]) -> None:
    """Print rows of the same keys below each other."""
    widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    lines = [{key: key for key in widths}, *rows]
    show("\n".join("  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines))


@contextmanager
def output(verbose: bool) -> Iterator[None]:
    """Run a command in this block: what is logged goes where this file says.

    Args:
        verbose: show all of it on the terminal.
    """
    global _running
    root, package = logging.getLogger(), logging.getLogger("hgkd_hf")
    _running, level = _Command(verbose), package.level
    handlers = _running.console, _running.log
    for handler in handlers:
        root.addHandler(handler)
    package.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        _running = None
        logging.captureWarnings(False)
        package.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
        handlers[1].close()


@contextmanager
def step() -> Iterator[None]:
    """Run a command as a step of the one that runs: its bar is seen, its lines go to that one's log alone."""
    if _running is not None:
        _running.is_step = True
    try:
        yield
    finally:
        if _running is not None:
            _running.is_step = False


def hush() -> None:
    """From here on the libraries log as the command does, and have no progress bars unless it is verbose.

    Commands call it once their settings are known, since it imports the libraries. Outside of a command it does
    nothing.
    """
    if _running is None:
        return
    import datasets
    import transformers

    for name in LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    if not _running.verbose:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def log_to(folder: Path) -> None:
    """Write what was and will be logged to `run.log` in this folder; of several processes, the first one does.

    A step of another command has no log of its own.
    """
    if _running is None or _running.is_step or int(os.environ.get("RANK", 0)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _running.log.setTarget(file)
    _running.log.flush()
    _running.log.flushLevel = logging.NOTSET  # at once, from now on
