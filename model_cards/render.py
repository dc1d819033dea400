"""The card of every model that this repository's recipes trained here: facts in *.json, cards in *.md.

    python model_cards/render.py                                     # renders every card
    python model_cards/render.py --add runs/mine --name my-student   # takes the facts of a finished run, then renders
    python model_cards/render.py --benchmark OUTPUT_DIR/cifar10/120s # of the first seed of a finished benchmark

A benchmark is a folder of `benchmarks/downstream.py --preset full`: of each of its students the run's own card, with
the metrics of the benchmark's tables. What a run could not read about its teacher or data stands in sources.json, by
name. Facts hold no local paths.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hgkd_hf.hub import License, Source, StudentCard
from hgkd_hf.hub.student_card import BEFORE, CARD_FILE, METRICS, STUDENT

HERE = Path(__file__).parent
SOURCES = "sources.json"
# Of `benchmarks/downstream.py --preset full`.
FROZEN = "frozen pooled features of at most 5,000 training and 2,000 test images"
PROTOCOLS = {
    "knn_accuracy": f"vote of the 20 nearest by cosine (temperature 0.07), {FROZEN}",
    "linear_accuracy": f"logistic regression, strength chosen on a held-out tenth of the training images, {FROZEN}",
    "10_shot_accuracy": f"logistic regression on 10 labels a class, mean of 5 draws, {FROZEN}",
    "feature_rank": "exponential of the entropy of the singular values, pooled features of the test images",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="RUN", help="Folder of a finished run.")
    parser.add_argument("--name", help="Of the added model; default: the folder's.")
    parser.add_argument("--benchmark", type=Path, metavar="FOLDER", help="Of benchmarks/downstream.py.")
    parser.add_argument("--rows", nargs="+", default=["hgkd", "hgkd-cached", "spark"], help="Of the benchmark.")
    parser.add_argument("--license", help="Of the added models, where teacher and data do not decide it.")
    args = parser.parse_args(arguments)
    license = License(args.license) if args.license else None
    if args.add is not None:
        add(facts_of(args.add), args.name or args.add.resolve().name, license)
    if args.benchmark is not None:
        for row in args.rows:
            card = facts_of_row(args.benchmark, row)
            student = card.settings["student"].replace("-", "")
            add(card, f"{row}-{student}-{card.dataset.name.replace('_', '-')}", license)
    for path in sorted(HERE.glob("*.json")):
        if path.name != SOURCES:
            path.with_suffix(".md").write_text(StudentCard.load(path).render(), encoding="utf-8")


def add(card: StudentCard, name: str, license: License | None) -> None:
    """Keep the facts of a model under its name."""
    card.name, card.license, card.pictures = name, None, {}
    add_known_sources(card)
    card.settle_license(license)
    card.save(HERE / f"{name}.json")


def facts_of_row(benchmark: Path, row: str, seed: int = 0) -> StudentCard:
    """The card of one of a benchmark's students, with the metrics of its frozen features and of the random student's.

    Raises:
        FileNotFoundError: the benchmark has not finished this row.
    """
    card = facts_of(benchmark / f"{row}-{seed}")
    for whose, name in ((BEFORE, "random"), (STUDENT, row)):
        cell = json.loads((benchmark / "cells" / f"{name}-{seed}-frozen.json").read_text(encoding="utf-8"))
        card.results[whose] = {metric: cell[metric] for metric in METRICS if metric in cell}
    card.protocol = {metric: PROTOCOLS[metric] for metric in card.results[STUDENT] if metric in PROTOCOLS}
    card.data["evaluation_split"] = "test"
    return card


def add_known_sources(card: StudentCard) -> None:
    """Complete teachers, data and first weights by what `sources.json` says of their names."""
    known = json.loads((HERE / SOURCES).read_text(encoding="utf-8"))

    def completed(source: Source | None) -> Source | None:
        return source and Source.from_dict({**asdict(source), **known.get(source.name, {})})

    card.teachers = [completed(teacher) for teacher in card.teachers]
    card.dataset, card.start = completed(card.dataset), completed(card.start)


def facts_of(run: Path) -> StudentCard:
    """The card that a run wrote.

    Raises:
        FileNotFoundError: it wrote none.
    """
    facts = run / "student" / CARD_FILE
    if not facts.is_file():
        raise FileNotFoundError(f"there is no {facts}: give the folder of a finished run (--add).")
    return StudentCard.load(facts)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
