"""`hgkd`: one command, whose first word chooses what is done."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from ..version import __version__
from .errors import run_script

# Each is a file of this folder with `main(arguments)`, whose docstring begins with what `hgkd --help` says of it.
COMMANDS = (
    "quickstart",
    "distill",
    "teach",
    "finetune",
    "predict",
    "embed",
    "evaluate",
    "export",
    "report",
    "publish",
    "pull",
    "pretrain-teacher",
    "teachers",
    "students",
    "environment",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others.

    Raises:
        SystemExit: there is no such command, or the command ended in an error that the user can act on.
    """
    name, *others = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"hgkd_hf {__version__}")
    elif name in COMMANDS:
        run_script(load(name).main, others)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
        sys.exit(f"error: there is no command {name!r}: {hint}")


def load(command: str):
    """The module of a command."""
    return importlib.import_module(f".{command.replace('-', '_')}", __package__)


def overview() -> str:
    """What `hgkd --help` prints: every command and the first line of its help."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {load(name).__doc__.splitlines()[0]}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: hgkd COMMAND [--flag VALUE ...]",
            "",
            *rows,
            "",
            "`hgkd COMMAND --help` lists the flags of a command. On several GPUs or machines:",
            "",
            "  accelerate launch -m hgkd_hf.cli.distill [--flag VALUE ...]",
        ]
    )


if __name__ == "__main__":
    main()
