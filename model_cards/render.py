"""The card of every model that this repository's recipes trained here: facts in *.json, cards in *.md.

    python model_cards/render.py                                     # renders every card anew
    python model_cards/render.py --add runs/mine --name my-student   # takes the facts of a finished run, then renders

What a run could not read about its teacher or data stands in sources.json, by name. Facts hold no local paths.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import yaml

from hgkd_hf.hub import License, Source, StudentCard
from hgkd_hf.hub.papers import method_of
from hgkd_hf.hub.sources import is_repo_id, last_part
from hgkd_hf.hub.student_card import BEFORE, CARD_FILE, HOUSEKEEPING, METRICS, STUDENT
from hgkd_hf.methods import METHODS
from hgkd_hf.trainer import DistillationArguments

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
    """The card that a run wrote; of a run from before there were cards, what its files tell."""
    written = run / "student" / CARD_FILE
    if written.is_file():
        return StudentCard.load(written)
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(f"there is no {run / 'summary.json'}: give the folder of a finished run (--add).")
    settings = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    summary, config, student = (
        json.loads((run / name).read_text(encoding="utf-8"))
        for name in ("summary.json", "config.json", "student/config.json")
    )
    kept = {key: value for key, value in settings.items() if key not in HOUSEKEEPING.split()}
    defaults = _defaults(settings.get("method", "hgkd"))
    plain = {"architectures", "dtype", "model_type", "student_config", "transformers_version", "use_cache"}
    distiller = {key: value for key, value in config.items() if key not in plain | {"id2label", "label2id"}}
    images = summary["steps"] * settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    text = (run / "student" / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^`(accelerate launch .*)`$", text, re.MULTILINE)
    versions = re.findall(r"(\w+) (\d[\w.+]*)", text.rstrip().splitlines()[-1])
    shown = {key: value for key, value in distiller.items() if not key.startswith(("teacher_", "image_"))}
    objective = ", ".join(f"{key} {value}" for key, value in shown.items())
    classes = student["architectures"][0].endswith("ForImageClassification")
    return StudentCard(
        method=method_of(config),
        student=student["architectures"][0],
        parameters=_parameters(run / "student" / "model.safetensors"),
        has_decoder=(run / "student" / "sparse_unet").is_dir(),
        num_classes=len(student.get("id2label", "ab")) if classes else None,
        teacher=_source(settings["teacher"], settings["teacher_revision"]),
        dataset=_source(settings["dataset"], settings["dataset_revision"]),
        start=_source(settings["student"]) if settings["student_pretrained"] else None,
        description={"student": summary["student"], "teacher": summary["teacher"], "distiller": objective},
        distillation=distiller,
        data={"split": settings["split"], "evaluation_split": settings["knn_split"]},
        results={
            whose: _figures(summary[part])
            for whose, part in ((BEFORE, "before"), (STUDENT, "after"))
            if part in summary
        },
        protocol={
            "knn_accuracy": (
                f"vote of the {settings['knn_k']} nearest by cosine (temperature {settings['knn_temperature']}) among "
                f"at most {settings['knn_bank_samples']:,} images of {settings['split']}, frozen pooled features, on "
                f"at most {settings['knn_query_samples']:,} images of {settings['knn_split']}"
            )
        },
        settings=kept,
        changed=[key for key, value in kept.items() if value != defaults.get(key) and (value or defaults.get(key))],
        run={
            "steps": summary["steps"],
            "images_seen": images,
            "seconds": summary["train_seconds"],
            "images_per_second": round(images / summary["train_seconds"], 1),
        },
        versions=dict(versions),
        command=command[1] if command else "",
    )


def _figures(evaluation: dict[str, float]) -> dict[str, float]:
    named = {key.partition("_")[2]: value for key, value in evaluation.items()}
    return {metric: value for metric, value in named.items() if metric in METRICS}


def _defaults(method: str) -> dict:
    found = {}
    for item in (*fields(METHODS[method]), *fields(DistillationArguments)):
        if item.default is not MISSING or item.default_factory is not MISSING:
            found[item.name] = item.default if item.default_factory is MISSING else item.default_factory()
    return found


def _source(name: str | None, revision: str | None = None) -> Source | None:
    if name is None:
        return None
    on_hub = is_repo_id(name) and "/" in name
    return Source(name if on_hub else last_part(name), on_hub, revision)


def _parameters(weights: Path) -> int:
    """Numbers in a safetensors file, without the statistics of BatchNorm, which are buffers."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name == "__metadata__" or name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        count = 1
        for size in tensor["shape"]:
            count *= size
        total += count
    return total


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
