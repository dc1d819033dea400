"""The log of a run as a file: `metrics.jsonl`, one entry a line."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..checkpoints.run_files import METRICS_FILE
from ..checkpoints.whole_folders import write_whole

logger = logging.getLogger(__name__)


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's log, each with its `step`.

    A last line that is being written is left out, and so are lines that are damaged, which the log names.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(run, METRICS_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the folder of a run.")
    entries, damaged = _entries(path)
    if damaged:
        logger.warning("%s: damaged lines are left out (%s).", path, ", ".join(map(str, damaged)))
    return entries


class MetricsFile(TrainerCallback):
    """Writes every log entry as a line of `metrics.jsonl` in the run's folder, and logs it; NaN and inf are null."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Take back the entries of steps that are to be done again, the summary of the end, and damaged lines.

        Of a file with damaged lines a copy is kept.
        """
        path = Path(args.output_dir, METRICS_FILE)
        if not state.is_world_process_zero or not path.is_file():
            return
        entries, damaged = _entries(path)
        if damaged:
            copy = path.with_name(METRICS_FILE + ".damaged")
            shutil.copyfile(path, copy)
            logger.warning(
                "%s: damaged lines are taken out (%s); as it was it is %s.", path, ", ".join(map(str, damaged)), copy
            )
        kept = [entry for entry in entries if entry["step"] <= state.global_step and "train_runtime" not in entry]
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append the entry."""
        if state.is_world_process_zero:
            path = Path(args.output_dir, METRICS_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            finite = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in {"step": state.global_step, **logs}.items()
            }
            line = json.dumps(finite)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            logger.info(line)


def _entries(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The entries, and the numbers of the lines that are none; a last line without an end is no line yet."""
    entries, damaged = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError
        except (ValueError, TypeError, LookupError):
            damaged.append(number)
        else:
            entries.append(entry)
    return entries, damaged
