"""The card of a student: a data object that a run fills, and the README that is rendered from it alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..methods.base.settings import Settings
from ..students.import_path import is_import_path
from . import readme
from .evaluation_results import eval_result, result_files
from .papers import METHOD_NOTES, MethodNote
from .privacy import public
from .sources import License, Source, derive_license
from .templates import render

CARD_FILE = "card.json"
TEMPLATE = Path(__file__).with_name("student_card.md")
BEFORE, STUDENT = "before training", "this student"

# Metrics that a run's evaluation gives: title, and the metric's name on the Hub (None: no result to list there).
METRICS = {
    "accuracy": ("top-1 accuracy", "accuracy"),
    "knn_accuracy": ("kNN accuracy", "accuracy"),
    "linear_accuracy": ("accuracy of a linear probe", "accuracy"),
    "10_shot_accuracy": ("accuracy of a 10-shot probe", None),
    "feature_rank": ("effective rank of the features", None),
    "feature_std": ("deviation of the features", None),
    "top1_accuracy": ("top-1 accuracy", "accuracy"),
    "top5_accuracy": ("top-5 accuracy", None),
    "mean_iou": ("mean IoU", "mean_iou"),
    "ap": ("average precision (COCO)", "map"),
    "ap50": ("average precision at IoU 0.5", None),
}

# Settings that say where and how a run was kept, not what it computed.
HOUSEKEEPING = """
accelerator_config dataloader_pin_memory ddp_timeout debug disable_tqdm do_eval do_predict do_train dry_run
hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token license local_rank log_level
log_level_replica output_dir project push_to_hub recipe report_to resume run_name use_cpu
"""

# Fields of a distiller's config that a card gives in another place.
ELSEWHERE = ("teacher_name_or_path", "teacher_revision", "image_mean", "image_std")


@dataclass
class StudentCard:
    """What is known of a student; plain data, saved as JSON beside it.

    Attributes:
        name: of the model, the title.
        method: a key of `METHOD_NOTES`, or the `model_type` of another distiller.
        student: class of the exported model.
        parameters: of the exported model.
        has_decoder: whether the folder holds the whole student in `sparse_unet/`.
        num_classes: of its classifier; None without one.
        task: what it was fine-tuned for, "" if it was not.
        own_code: whether loading the model needs this package.
        network: of a student from outside of transformers, the `factory` that builds it and its `arguments`.
        teachers, dataset, start: where it comes from; `start` are the weights that the student began with.
        description: the run's start summary, (what, value).
        distillation: the distiller's configuration, without the student's.
        data: what is known of the training rows: split, number, fingerprint.
        results: metrics by (whose, metric): of the student, of the same network before training, of other baselines.
        protocol: how a metric was measured.
        settings: all settings of the run; `changed` names those that are not the default.
        run: what it took: steps, images, seconds, hardware, energy.
        versions: of Python and the libraries.
        command, commit: that repeat the run.
        license, license_reason: None: not known (see `settle_license`).
        tags: more tags for the metadata.
        pictures: file in the folder -> what it shows.
        deployment: a row for each program that `hgkd export` made, with size, latency and accuracy.
        deployment_conditions: how they were measured.
    """

    name: str = "student"
    method: str = ""
    student: str = ""
    parameters: int | None = None
    has_decoder: bool = False
    num_classes: int | None = None
    task: str = ""
    own_code: bool | None = None
    network: dict[str, Any] = field(default_factory=dict)
    teachers: list[Source] = field(default_factory=list)
    dataset: Source | None = None
    start: Source | None = None
    description: dict[str, str] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    protocol: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    commit: str = ""
    license: License | None = None
    license_reason: str = ""
    tags: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    deployment: list[dict[str, Any]] = field(default_factory=list)
    deployment_conditions: str = ""

    # -- filling -----------------------------------------------------------------------------------------------------

    def add_settings(self, arguments: Any) -> None:
        """Record a dataclass of settings, and which of them are not the default; nothing, no and none are alike."""
        values = arguments.to_dict() if hasattr(arguments, "to_dict") else asdict(arguments)
        for item in fields(arguments):
            if item.name not in values or item.name in HOUSEKEEPING.split() or item.name.startswith("_"):
                continue
            value = getattr(arguments, item.name)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if default is None and isinstance(arguments, Settings):
                default = arguments.settled_default(item.name)
            self.settings[item.name] = values[item.name]
            if value != default and (value or default) and item.name not in self.changed:
                self.changed.append(item.name)

    def settle_license(self, chosen: License | None = None, existing: License | None = None) -> None:
        """Fix the licence: the one that was asked for, else what the README already says, else what is inherited."""
        made_of = [*self.teachers, *([self.start] if self.start is not None else [])]
        derived, reason = derive_license(made_of, self.dataset)
        if chosen is not None:
            self.license, self.license_reason = chosen, "chosen by its publisher"
        elif existing is not None and existing != derived:
            self.license, self.license_reason = existing, "set in its README"
        elif derived is not None or self.license is None:
            self.license, self.license_reason = derived, reason

    # -- keeping -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, what is known of it; local paths are reduced to their last part and secrets are hidden."""
        paths = list(_texts(self.settings))
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data = {name: asdict(value) if is_dataclass(value) else value for name, value in data.items()}
        data["teachers"] = [asdict(teacher) for teacher in self.teachers]
        return public({name: value for name, value in data.items() if value not in (None, "", [], {})}, paths)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StudentCard:
        """Read what `to_dict` gave, now or when a student had one `teacher`.

        Raises:
            ValueError: a key is no field of a card, or its network is not built by a function.
        """
        data = dict(data)
        if "teacher" in data:
            data["teachers"] = [data.pop("teacher")]
        unknown = set(data) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"a card has no field {sorted(unknown)[0]!r}.")
        data["teachers"] = [Source.from_dict(source) for source in data.get("teachers", [])]
        for name in ("dataset", "start"):
            if data.get(name):
                data[name] = Source.from_dict(data[name])
        if "network" in data and not is_import_path(str(data["network"].get("factory"))):
            raise ValueError(f"its network's factory {data['network'].get('factory')!r} is not an import path.")
        if data.get("license"):
            data["license"] = License(**data["license"])
        return cls(**data)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> StudentCard:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no card.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {Path(path)}: it is written by a run when it ends.") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a model card's data: {error}") from error

    # -- telling -----------------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> str:
        """The Hub's name of what it does."""
        if self.task:
            return {"semantic-segmentation": "image-segmentation"}.get(self.task, self.task)
        return "image-feature-extraction" if self.num_classes is None else "image-classification"

    @property
    def network_code(self) -> str:
        """What loads the weights into the network of `network`, without this package."""
        module, _, name = self.network["factory"].partition(":")
        arguments = ", ".join(
            f"{key}={value!r}" if key.isidentifier() and not iskeyword(key) else f"**{{{key!r}: {value!r}}}"
            for key, value in self.network["arguments"].items()
        )
        return (
            f"from {module} import {name.partition('.')[0]}\n"
            "from safetensors.torch import load_file\n\n"
            f"network = {name}({arguments})\n"
            'network.load_state_dict(load_file("model.safetensors"))  # of this repository'
        )

    @property
    def about(self) -> MethodNote:
        """The method."""
        return METHOD_NOTES.get(self.method) or MethodNote(self.method or "distillation", "")

    @property
    def masks(self) -> bool:
        """Whether it saw only a part of its images."""
        return bool(self.distillation.get("mask_ratio"))

    @property
    def summary(self) -> str:
        """What it saw and learned."""
        saw = "saw only some cells of each image, by sparse convolution, and " if self.masks else ""
        return f"It {saw}{self.about.summary}" if self.about.summary else ""

    def metadata(self) -> dict[str, Any]:
        """The README's metadata, in the Hub's keys."""
        tags = ["hgkd-hf", self.method.replace("_", "-")]
        if self.masks:
            tags += ["masked-image-modeling", "sparse-convolution"]
        if self.teachers:
            tags += ["knowledge-distillation", "distilled"]
            tags += [f"teacher:{teacher.name}" for teacher in self.teachers if teacher.on_hub]
        if self.about.paper is not None:
            tags.append(f"arxiv:{self.about.paper.arxiv}")
        hub_dataset = self.dataset is not None and self.dataset.on_hub
        results = self._eval_results()
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag=self.pipeline,
            tags=[*filter(None, tags), *self.tags],
            datasets=[self.dataset.name] if hub_dataset else None,
            metrics=["accuracy"] if results else None,
            # There is no relation "distilled": teachers stand in the tags and in `distillation`, not here.
            base_model=self.start.name if self.start is not None and self.start.on_hub else None,
            base_model_relation="finetune" if self.start is not None and self.start.on_hub else None,
            model_name=self.name if results else None,
            eval_results=results or None,
            distillation=self._distillation(),
            **(self.license.metadata() if self.license is not None else {}),
        )
        if self.run.get("co2_grams"):
            data["co2_eq_emissions"] = {
                "emissions": self.run["co2_grams"],
                "source": "codecarbon",
                "training_type": "pre-training",
                "hardware_used": self.run.get("hardware", ""),
            }
        return _one_line(data.to_dict())

    def _distillation(self) -> dict[str, Any]:
        names, commits = ([getattr(source, name) for source in self.teachers] for name in ("name", "revision"))
        if len(names) < 2:
            names, commits = next(iter(names), None), next(iter(commits), None)
        block = {"method": self.about.name, "teacher": names, "teacher_revision": commits}
        block |= {key: value for key, value in self.distillation.items() if key not in ELSEWHERE}
        return {key: value for key, value in block.items() if value not in (None, [], ())}

    def _eval_results(self) -> list[EvalResult]:
        if self.dataset is None:
            return []
        task, split = self.pipeline if self.task else "image-classification", self.data.get("evaluation_split")
        found = []
        for metric, value in self.results.get(STUDENT, {}).items():
            title, kind = METRICS.get(metric, (metric, None))
            if kind:
                kinds = {"task_type": task, "metric_type": kind}
                found.append(eval_result(self.dataset, split, title, value, self.protocol.get(metric), **kinds))
        return found

    def result_files(self) -> dict[str, str]:
        """`.eval_results/*.yaml`: the student's first metric on its dataset, if the dataset is the Hub's."""
        results = self._eval_results()
        top1 = (result for result in results if result.metric_name == METRICS["accuracy"][0])
        return result_files(self.dataset, next(top1, results[0])) if results else {}

    def render(self, repo_id: str | None = None) -> str:
        """The README: metadata, then our part of the body. Reads nothing but this object and the template.

        Args:
            repo_id: the name that the snippets load; None = a placeholder.
        """
        card = StudentCard.from_dict(self.to_dict())  # without paths and secrets
        body = render(
            TEMPLATE,
            card=card,
            about=card.about,
            repo=repo_id or "path/to/this/folder",
            METRICS=METRICS,
            BEFORE=BEFORE,
        )
        return readme.compose(card.metadata(), body)


def _texts(value: Any) -> Iterator[str]:
    """All strings in plain data."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _one_line(value: Any) -> Any:
    """The same data with every string on one line: a line of dashes would end the metadata."""
    if isinstance(value, dict):
        return {_one_line(key): _one_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_one_line(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value
