"""The folder that is published: beside the student's weights its card, pictures, recipe, metrics and results."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..checkpoints.run_files import METRICS_FILE, RECIPE_FILE
from ..methods.base.distiller import Distiller
from ..students.module_backbone import ModuleBackbone
from ..training.callbacks import warn_only
from ..training.metrics_file import read_metrics
from ..visualize import curves_figure
from . import readme
from .export import export_student, extended_student, stock_student
from .papers import method_of
from .recipe import public_settings
from .student_card import CARD_FILE, StudentCard
from .untrusted import numbers

CURVES = "curves.png"


def describe_model(card: StudentCard, model: PreTrainedModel) -> None:
    """Fill in what the model itself tells: a student, or the distiller around one."""
    native = stock_student(model)
    card.student, card.has_decoder = type(native).__name__, extended_student(model) is not None
    card.parameters = native.num_parameters()
    if isinstance(native, ModuleBackbone):
        card.own_code = True
        card.network = {"factory": native.config.factory, "arguments": native.config.arguments or {}}
    card.num_classes = native.config.num_labels if card.student.endswith("ForImageClassification") else None
    if isinstance(model, Distiller):
        config, plain = model.config.to_dict(), PreTrainedConfig().to_dict()
        card.method = method_of(config)
        card.distillation = {k: v for k, v in config.items() if k not in plain and k not in _NOT_THE_METHOD}


_NOT_THE_METHOD = ("student_config", "dtype", "id2label", "label2id")


def write_student_folder(
    model: PreTrainedModel,
    folder: str | Path,
    image_processor: BaseImageProcessor,
    card: StudentCard,
    run: Path | None = None,
) -> Path:
    """Export a student and write everything else beside it; only the weights and the processor may fail.

    Args:
        model: the student, or the distiller around it.
        folder: created if need be.
        image_processor: of the student.
        card: what is known of it; gets the model's facts and the pictures that are there.
        run: folder with `metrics.jsonl`, if there is one.
    """
    folder = export_student(model, folder, image_processor)
    with warn_only("the model's description"):
        describe_model(card, model)
    add_card(folder, card, run)
    return folder


def add_card(folder: Path, card: StudentCard, run: Path | None = None) -> None:
    """Put a card into a model's folder, and beside it what its run tells; failures are warnings.

    Args:
        folder: with the model.
        card: what is known of it; gets the pictures that are there.
        run: folder with `metrics.jsonl`, if there is one.
    """
    if run is not None:
        add_run_files(folder, run, card)
    card.pictures = {name: what for name, what in card.pictures.items() if (folder / name).is_file()}
    write_card(folder, card)


def add_run_files(folder: Path, run: Path, card: StudentCard) -> None:
    """Put a run's recipe (teacher and data pinned, without what is for a command line to say), metrics and curves."""
    with warn_only("the recipe"):
        settings = card.to_dict()["settings"] | _pinned(card)
        settings = {k: v for k, v in public_settings(settings).items() if v is not None and v not in ([], {}, "")}
        (folder / RECIPE_FILE).write_text(readme.to_yaml(settings), encoding="utf-8")
    metrics = run / METRICS_FILE
    if metrics.is_file():
        with warn_only("the metrics"):
            lines = [json.dumps(numbers(entry, metrics)) + "\n" for entry in read_metrics(run)]
            (folder / METRICS_FILE).write_text("".join(lines), encoding="utf-8")
        with warn_only("the picture of the curves"):
            curves_figure({card.name: run}).savefig(folder / CURVES, dpi=120)
            card.pictures[CURVES] = "Loss and kNN accuracy over the steps."


def _pinned(card: StudentCard) -> dict[str, str | list[str]]:
    """The settings that name the commits of what a run was made of, as far as the Hub told them."""
    sources = {"teacher_revision": card.teachers, "dataset_revision": [card.dataset]}
    sources |= {name: [card.start] for name in ("student_revision", "model_revision")}
    pinned = {}
    for name in sources.keys() & card.settings.keys():
        commits = [source.revision if source is not None and source.on_hub else None for source in sources[name]]
        if commits and all(commits):
            pinned[name] = commits if len(commits) > 1 else commits[0]
    return pinned


def write_card(folder: Path, card: StudentCard) -> None:
    """Write `card.json`, the result files and the README, into which it is merged."""
    with warn_only("the model card"):
        if card.license is None:
            card.settle_license()
        card.save(folder / CARD_FILE)
        for name, text in card.result_files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        text = readme.merge(card.render(), readme.read_local(folder))
        (folder / readme.FILE).write_text(text, encoding="utf-8")
