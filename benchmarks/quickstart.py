"""The quickstart with several seeds: the mean of its tables, and whether H-GKD gains in each of them.

    python benchmarks/quickstart.py --seeds 0 1 2
    python benchmarks/quickstart.py --seeds 0 1 2 --docs docs

A finished seed is a folder below OUTPUT_DIR, and the same command continues after a stop. It fails if, with any
seed, H-GKD is less than AT_LEAST points above the random student or SparK, by kNN or by the few-label probe. With
--docs, the first seed's output and pictures are put into the docs' first page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill

from hgkd_hf.demo.comparison import HGKD, METRICS, RANDOM, SPARK, Comparison
from hgkd_hf.demo.pictures import PICTURES

BLOCK = re.compile(
    r"(?<=<!-- quickstart: written by benchmarks/quickstart.py -->\n).*?(?=<!-- /quickstart -->)", re.DOTALL
)


def run(seed: int, folder: Path, flags: list[str]) -> dict:
    """The results of one seed, from its folder or by work."""
    file = folder / "results.json"
    if not file.is_file():
        command = ["-m", "hgkd_hf.cli.main", "quickstart", f"--seed={seed}", f"--output_dir={folder}", *flags]
        subprocess.run([sys.executable, *command], check=True)
    return json.loads(file.read_text())


def summary(results: list[dict]) -> str:
    """Mean and sample deviation of each row over the seeds, as Markdown; per cent."""

    def cell(values: list[float]) -> str:
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * mean(values):.1f}{spread}"

    lines = ["| | kNN | 10 labels a class | CPU s |", "| --- | --- | --- | --- |"]
    for name in results[0]["rows"]:
        rows = [result["rows"][name] for result in results]
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        accuracies = [cell([row[metric] for row in rows]) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(accuracies)} | {f'{mean(seconds):.0f}' if seconds else '-'} |")
    return "\n".join(lines)


def smallest_gain(result: dict) -> float:
    """Of H-GKD over the random student and SparK, in points, by kNN and by the few-label probe."""
    rows = result["rows"]
    return 100 * min(rows[HGKD][metric] - rows[other][metric] for other in (RANDOM, SPARK) for metric in METRICS)


def page_block(results: dict) -> str:
    """What the docs' first page shows of a run: Markdown, made of its figures alone."""
    comparison = Comparison.from_dict(results)
    figures = [f"![{caption}](quickstart/{name})\n\n*{caption}*" for name, caption in PICTURES.items()]
    return "\n\n".join([f"```text\n{comparison.table()}\n\n{fill(comparison.reading(), 110)}\n```", *figures])


def write_docs(docs: Path, folder: Path) -> None:
    """Put a run's output and pictures into the docs' first page."""
    shown = docs / "quickstart"
    shown.mkdir(exist_ok=True)
    for name in ("results.json", *PICTURES):
        shutil.copy(folder / name, shown / name)
    page = docs / "index.md"
    block = page_block(json.loads((shown / "results.json").read_text()))
    page.write_text(BLOCK.sub(lambda _: f"\n{block}\n\n", page.read_text()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart-seeds"))
    parser.add_argument("--at_least", type=float, default=5.0, help="points of gain that every seed must show")
    parser.add_argument("--short", action="store_true", help="passed on")
    parser.add_argument("--docs", type=Path, help="folder of the docs to write into")
    args = parser.parse_args(arguments)
    flags = ["--short"] if args.short else []
    results = [run(seed, args.output_dir / str(seed), flags) for seed in args.seeds]
    print(f"\n{summary(results)}\n\nseeds {', '.join(map(str, args.seeds))}; mean ± sample deviation, per cent")
    gains = {seed: smallest_gain(result) for seed, result in zip(args.seeds, results)}
    for seed, gain in gains.items():
        print(f"seed {seed}: H-GKD is at least {gain:.1f} points above random and SparK")
    if args.docs:
        write_docs(args.docs, args.output_dir / str(args.seeds[0]))
    return int(min(gains.values()) < args.at_least)


if __name__ == "__main__":
    sys.exit(main())
