"""Fetch a run from the Hub to go on with its training.

    python training/pull.py user/name --output_dir runs/mine

The run must have been pushed with --hub_strategy checkpoint. Prints the command that goes on; data and teacher are
named in its recipe.yaml, from which local paths were removed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..hub.pull import pull_run
from .errors import run_script


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", help="user/name")
    parser.add_argument("--output_dir", type=Path, required=True, help="The run's new folder.")
    parser.add_argument("--revision", help="Branch, tag or commit.")
    args = parser.parse_args(arguments)
    checkpoint = pull_run(args.repo_id, args.output_dir, args.revision)
    print(f"{checkpoint} is there; go on with:")
    recipe = args.output_dir / "recipe.yaml"
    print(f"accelerate launch training/distill.py --recipe {recipe} --output_dir {args.output_dir} --resume")


if __name__ == "__main__":
    run_script(main)
