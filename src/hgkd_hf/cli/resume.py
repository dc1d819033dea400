"""A command's run folder: for one job at a time, and what `--resume` means for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..checkpoints.folders import explain_full_disk, list_checkpoints, newest_checkpoint
from ..checkpoints.identity import has_begun
from ..checkpoints.lock import run_lock
from ..training.arguments import DistillationArguments


@contextmanager
def run_folder(training: DistillationArguments) -> Iterator[None]:
    """Have the run's folder for this job alone, and errors of a full disk as a sentence.

    Raises:
        ValueError: another job uses the folder.
        RunStopped: the disk is full.
    """
    run = training.output_dir
    with run_lock(run) if training.process_index == 0 else nullcontext(), explain_full_disk(run):
        yield


def checkpoint_to_resume(run: str | Path, resume: bool) -> Path | None:
    """The checkpoint from which a command continues; a folder with checkpoints is never overwritten by accident.

    Args:
        run: the run's folder.
        resume: whether `--resume` was given.

    Returns:
        The newest complete checkpoint; None to start from the beginning, with `resume` if the run was stopped before
        its first checkpoint.

    Raises:
        ValueError: there are checkpoints and no `--resume`, or `--resume` and nothing to resume.
    """
    found = list_checkpoints(run)
    if found and not resume:
        raise ValueError(f"{run} holds {found[-1].name}: add --resume to continue, or choose another --output_dir.")
    checkpoint = newest_checkpoint(run) if resume else None
    if checkpoint is None and resume and (found or not has_begun(run)):
        kind = "complete checkpoint" if found else "checkpoint"
        raise ValueError(f"--resume: there is no {kind} in {run} (--output_dir).")
    return checkpoint
