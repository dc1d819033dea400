"""Write the report of a run: one HTML file with curves, pictures, results and recipe.

    hgkd report runs/mine
    hgkd report runs/mine --output_file mine.html

Training writes it when it ends; this command writes it again, also for a run that is in progress or was stopped.
"""

from __future__ import annotations

from pathlib import Path

from .errors import run_script
from .output import hush, show
from .parser import plain_parser


def main(arguments: list[str] | None = None) -> None:
    parser = plain_parser("report", __doc__)
    parser.add_argument("run", type=Path, help="Folder of the run.")
    parser.add_argument("--output_file", type=Path, help="Default: report.html in the folder.")
    args = parser.parse_args(arguments)
    from ..report import write_report  # here, after --help is answered

    hush()
    show(f"report: {write_report(args.run, args.output_file)}")


if __name__ == "__main__":
    run_script(main)
