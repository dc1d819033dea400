"""The card of every model that this repository's recipes trained here: facts in *.json, cards in *.md.

    python model_cards/render.py                                     # renders every card anew
    python model_cards/render.py --add runs/mine --name my-student   # takes the facts of a finished run, then renders

What a run could not read about its teacher or data stands in sources.json, by name. Facts hold no local paths.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hgkd_hf.hub import License, Source, StudentCard
from hgkd_hf.hub.student_card import CARD_FILE

HERE = Path(__file__).parent
SOURCES = "sources.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, metavar="RUN", help="Folder of a finished run.")
    parser.add_argument("--name", help="Of the added model; default: the folder's.")
    parser.add_argument("--license", help="Of the added model, where teacher and data do not decide it.")
    args = parser.parse_args(arguments)
    if args.add is not None:
        card = facts_of(args.add)
        card.name = args.name or args.add.resolve().name
        add_known_sources(card)
        card.license = None
        card.settle_license(License(args.license) if args.license else None)
        card.pictures = {}
        card.save(HERE / f"{card.name}.json")
    for path in sorted(HERE.glob("*.json")):
        if path.name != SOURCES:
            path.with_suffix(".md").write_text(StudentCard.load(path).render(), encoding="utf-8")


def add_known_sources(card: StudentCard) -> None:
    """Complete teacher, data and first weights by what `sources.json` says of their names."""
    known = json.loads((HERE / SOURCES).read_text(encoding="utf-8"))
    for role in ("teacher", "dataset", "start"):
        source = getattr(card, role)
        if source is not None and source.name in known:
            fact = {**asdict(source), **known[source.name]}
            setattr(card, role, Source(**{**fact, "license": fact["license"] and License(**fact["license"])}))


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
