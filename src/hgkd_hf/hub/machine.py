"""What a run was made by, for its card: versions, the package's commit, hardware, energy."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub")


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that a training uses."""
    known = {"hgkd_hf": __version__, "Python": platform.python_version()}
    return known | {name: found for name in LIBRARIES if (found := installed(name))}


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def hardware(args: Any) -> str:
    """What the run computes on."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    what = "CPU" if args.device.type == "cpu" else args.device.type
    return f"{what} {processor_name()}, {args.world_size} process(es) of {torch.get_num_threads()} thread(s)"


def processor_name() -> str:
    """The CPU's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit_of_package() -> str:
    """The git commit of this package's source, with a plus if it was changed; empty where it is not under git."""
    here = Path(__file__).parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=environment
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parent))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def energy(emissions: Path) -> dict[str, float]:
    """What codecarbon's file says of a run: `energy_kwh`, `co2_grams`; nothing without one.

    It has a line for each start of the run; a killed process wrote none.
    """
    if not emissions.is_file():
        return {}
    with emissions.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {
        "energy_kwh": round(sum(float(line["energy_consumed"]) for line in lines), 6),
        "co2_grams": round(sum(float(line["emissions"]) for line in lines) * 1000, 3),
    }
