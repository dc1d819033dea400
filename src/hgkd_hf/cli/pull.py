"""Fetch a run from the Hub to resume its training.

    hgkd pull user/name --output_dir runs/mine

The run must have been pushed by `hgkd distill --hub_strategy checkpoint`. Prints the recipe that was fetched, what of
it was left out and why, and the command that resumes the run. What leaves this machine, credentials, places of files
and trackers are never taken from a fetched recipe: add their flags to that command.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.run_files import RECIPE_FILE
from .errors import run_script
from .output import hush, log_to, show
from .parser import plain_parser

if TYPE_CHECKING:
    from ..hub.pull import PulledRun


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("pull", __doc__)
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--output_dir", type=Path, required=True, help="The run's new folder.")
    parser.add_argument("--revision", help="Branch, tag or commit.")
    args = parser.parse_args(arguments)
    from ..hub.pull import pull_run  # here and below, after --help is answered
    from ..hub.readme import to_yaml

    hush()
    pulled = pull_run(args.repo_id, args.output_dir, args.revision)
    log_to(args.output_dir)
    show(f"{pulled.checkpoint} is there, of commit {pulled.commit}. Its recipe, to read before it is used:\n")
    show(to_yaml(pulled.recipe))
    if pulled.left_out:
        show("Left out of it:")
        show("\n".join(f"  {name}: {reason}" for name, reason in pulled.left_out.items()) + "\n")
    show("Resume the run with:")
    show(resume_command(args.output_dir, pulled))


def resume_command(run: Path, pulled: PulledRun) -> str:
    """The command that resumes a run; what only the user knows stands in capitals."""
    from ..hub.recipe import SOURCES

    command = ["hgkd", "distill"]
    command += ["--recipe", str(run / RECIPE_FILE)] if pulled.recipe else []
    command += ["--output_dir", str(run), "--resume"]
    unknown = [name for name in (*SOURCES, "teacher_head") if name in pulled.left_out]
    if "dataset" not in (*pulled.recipe, *unknown):
        unknown.append("dataset")
    return shlex.join([*command, *(word for name in unknown for word in (f"--{name}", name.upper()))])


if __name__ == "__main__":
    run_script(main)
