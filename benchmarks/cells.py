"""Figures in files, with the settings that they were measured with: what stopped measures nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hgkd_hf.checkpoints.whole_folders import write_whole


def kept(file: Path, settings: dict[str, Any], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The figures in `file`, or those of `measure`, which are kept there.

    Args:
        file: JSON; the settings lie beside it (a file without them is taken as it is).
        settings: all that the figures depend on and the name of the file does not tell; plain data.
        measure: makes the figures, once.

    Raises:
        ValueError: they were measured with other settings.
    """
    beside, settings = file.with_suffix(".settings.json"), json.loads(json.dumps(settings))
    if file.is_file():
        before = json.loads(beside.read_text()) if beside.is_file() else settings
        for name in settings:
            if settings[name] != before.get(name):
                raise ValueError(
                    f"{file} was measured with {name} {before.get(name)}, not {settings[name]}: move it away, or "
                    "choose another --output_dir."
                )
        return json.loads(file.read_text())
    print(f"{time.strftime('%H:%M:%S')} {file.stem}", flush=True)
    figures = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(beside, json.dumps(settings, indent=2) + "\n")
    write_whole(file, json.dumps(figures, indent=2) + "\n")
    return figures
