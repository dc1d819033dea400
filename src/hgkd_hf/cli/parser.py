"""The parsers of the commands, and help that can be read."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from typing import get_type_hints

from transformers import HfArgumentParser

from ..training.settings import TrainingSettings

HELP_ALL, VERBOSE = "--help_all", "--verbose"


def plain_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a command whose flags are added one by one."""
    parser = argparse.ArgumentParser(
        prog=f"hgkd {command}", description=description, allow_abbrev=False, formatter_class=_Help
    )
    add_verbose(parser)
    return parser


def settings_parser(types: Sequence[type], command: str, description: str | None) -> HfArgumentParser:
    """The parser of a command whose flags are the fields of dataclasses, and whose defaults a recipe may set."""
    parser = HfArgumentParser(
        list(types),
        prog=f"hgkd {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=_Help,
        usage="%(prog)s [--recipe FILE] [--flag VALUE ...]",
    )
    add_verbose(parser)
    parser.add_argument(
        "--recipe", help="Defaults of other flags: a YAML file, or a recipe's name, e.g. hgkd_resnet50."
    )
    parser.add_argument(
        "--allow_code",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="Functions of this machine (package.module:function) that a student's config may name as what builds it; "
        "never read from a recipe.",
    )
    if any(issubclass(kind, TrainingSettings) for kind in types):
        parser.add_argument(
            HELP_ALL,
            action="help",
            help="List all flags: every field of transformers.TrainingArguments is one, e.g. --num_train_epochs, "
            "--max_steps, --gradient_accumulation_steps, --eval_steps, --save_steps, --seed, --push_to_hub, "
            "--hub_model_id.",
        )
    hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
    for action in parser._actions:
        if hints.get(action.dest) == int | str:  # of which HfArgumentParser knows the number alone
            action.type = _number_or_word
    return parser


def answer_help(types: Sequence[type], command: str, description: str | None, arguments: Sequence[str] | None) -> None:
    """If `--help` is asked for, print it and exit, before torch is imported.

    Args:
        types: the command's dataclasses, with `TrainingSettings` in the place of the `TrainingArguments`, which need
            torch, and whose own fields `--help_all` lists.
        command: its name.
        description: what the help begins with.
        arguments: the command line; default: the process's.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if HELP_ALL in arguments or not {"-h", "--help"} & set(arguments):
        return
    settings_parser(types, command, description).print_help()
    sys.exit()


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the flag of every command that `run_script` reads."""
    parser.add_argument(VERBOSE, action="store_true", help="Show on the terminal what else goes to run.log.")


def _number_or_word(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples stand as they are written, and a flag once, though dashes are taken for its underscores too.

    Long lists of choices are left to the flag's own help.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=40, width=119)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [name for name in action.option_strings if "-" not in name[2:]]
        if action.option_strings and action.nargs != 0:
            shown.metavar = None if shown.choices and len(shown.choices) < 8 else "VALUE"
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)
