"""Answers --help from texts, before a script imports torch and transformers, which takes seconds.

    python training/quick_help.py     # writes the texts anew; a test compares them with the parsers

The texts list flags of transformers too, so they are used only with the version that they were written with, and not
with --recipe, which may choose another method. Otherwise the script's own parser answers.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

FOLDER = Path(__file__).parent
HELP = FOLDER / "help"
VERSION = HELP / "transformers_version.txt"
# Scripts in which a flag decides which other flags there are, with the flag's default.
DECIDING = {"distill": ("method", "hgkd"), "finetune": ("task", "image-classification")}
# Their last section is long and common to several, so that it is kept in a file of its own.
TRAINING = {"distill": "training", "pretrain_teacher": "training", "finetune": "finetuning"}


def answer_help(script: str) -> None:
    """Print the help of `script` (its path) and exit, if the command line asks for it and there is a text for it."""
    name = Path(script).stem
    flag, default = DECIDING.get(name, ("", None))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--recipe")
    if flag:
        parser.add_argument(f"--{flag}", dest="choice")
    asked, _ = parser.parse_known_args()
    files = files_of(name, getattr(asked, "choice", None) or default)
    if asked.help and not asked.recipe and files[0].is_file() and VERSION.read_text() == version("transformers"):
        print("".join(file.read_text(encoding="utf-8") for file in files), end="")
        sys.exit()


def files_of(name: str, choice: str | None = None) -> list[Path]:
    """The files whose texts make up the help of a script, of one method or task if it has several."""
    own = f"{name}-{choice}" if choice else name
    return [HELP / f"{part}.txt" for part in (own, TRAINING.get(name)) if part]


def texts() -> Iterator[tuple[Path, str]]:
    """Every file, and what belongs into it by the scripts' parsers."""
    from hgkd_hf.finetuning import TASKS
    from hgkd_hf.methods import METHODS

    choices = {"distill": METHODS, "finetune": TASKS}
    yield VERSION, version("transformers")
    for script in sorted(FOLDER.glob("*.py")):
        if script == Path(__file__):
            continue
        for choice in choices.get(script.stem, [None]):
            words = [f"--{DECIDING[script.stem][0]}={choice}"] if choice else []
            own, mark, training = _from_parser(script, words).partition("\ntraining:\n")
            yield from zip(files_of(script.stem, choice), (own, mark + training))


def _from_parser(script: Path, words: list[str]) -> str:
    name = f"training_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    module = importlib.util.module_from_spec(spec)
    with (
        patch.dict(sys.modules, {name: module}),  # where dataclasses look names up
        patch.dict(os.environ, COLUMNS="119"),
        patch.object(sys, "argv", [str(script)]),
        redirect_stdout(io.StringIO()) as shown,
        suppress(SystemExit),
    ):
        spec.loader.exec_module(module)
        module.main([*words, "--help"])
    return shown.getvalue()


if __name__ == "__main__":
    HELP.mkdir(exist_ok=True)
    for file, text in texts():
        file.write_text(text, encoding="utf-8")
