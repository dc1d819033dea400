"""Training scripts in processes of their own, and how many steps fit in a budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from hgkd_hf.checkpoints.folders import list_checkpoints

TRAINING = Path(__file__).parents[1] / "training"


def steps_within(budget: float, steps: tuple[int, int], seconds: list[float]) -> int:
    """How many steps fit in `budget` seconds, if runs of `steps` took `seconds`, most of a start the same."""
    (few, many), (short, long) = steps, seconds
    step = max((long - short) / (many - few), long / many / 2)  # noise may not make it free
    return max(1, round(many + (budget - long) / step))


def launch_script(script: str, folder: Path, **settings) -> None:
    """Run a training script with its settings as flags, resumed from a checkpoint; its output goes to run.log."""
    settings |= {"output_dir": folder}
    if script in ("distill.py", "finetune.py"):
        settings |= {"save_strategy": "steps", "save_steps": 100, "save_total_limit": 1}
        settings |= {"disable_tqdm": True, "logging_steps": 10}
    flags = []
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    if list_checkpoints(folder):
        flags.append("--resume")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    with log.open("a") as output:
        done = subprocess.run([sys.executable, str(TRAINING / script), *flags], stdout=output, stderr=output)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-1]
        raise ValueError(f"{script} for {folder} failed: {last.removeprefix('error: ')} (see {log})")


def check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a finished run that was made with another budget."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, value in settings.items():
        if name in recipe and value is not None and recipe[name] != value:
            raise ValueError(
                f"{folder} was made with {name} {recipe[name]}, but this benchmark wants {value}: "
                f"move it away, or choose another --output_dir."
            )


def commit() -> str | None:
    command = ["git", "-C", str(TRAINING), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None
