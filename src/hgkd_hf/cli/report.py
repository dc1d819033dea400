"""Write the report of a run: one HTML file with curves to hover over, pictures, results and recipe.

    python training/report.py runs/mine
    python training/report.py runs/mine --output_file mine.html

A training writes it at its end; this command writes it again, also of a run that goes on or was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import write_report
from .errors import run_script


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Folder of the run.")
    parser.add_argument("--output_file", type=Path, help="Default: report.html in the folder.")
    args = parser.parse_args(arguments)
    print(f"report: {write_report(args.run, args.output_file)}")


if __name__ == "__main__":
    run_script(main)
