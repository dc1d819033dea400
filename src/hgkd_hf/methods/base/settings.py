"""The settings that all methods share, and what each method adds to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ...checkpoints.identity import weights_digest
from ...data import (
    DistillationDataset,
    EvaluationDataset,
    ImageSource,
    ImageTransform,
    StreamingDistillationDataset,
    load_images,
)
from ...students.presets import PRESETS, student_encoder_config
from ...teachers import ClassifierTeacher, PatchTeacher

# Settings that decide what is measured, or how a run begins, but not what is learned.
_CHANGE_NOTHING = ("resume", "dry_run", "knn_split", "knn_bank_samples", "knn_query_samples")


@dataclass
class Method(ABC):
    """What is distilled from what, on which images."""

    dataset: str = field(metadata={"help": "Hub id or path: a folder of images, of parquet files, a saved dataset."})
    method: str = field(default="hgkd", metadata={"help": "hgkd | rob | manifold | msdcrd | kd."})

    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder of the teacher."})
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Target layers: -1 = final output, i = block i."}
    )
    teacher_image_size: int | None = field(default=None, metadata={"help": "Pixels; default: what fits."})
    teacher_dtype: str = field(default="float32", metadata={"help": "float32 | bfloat16 | float16."})
    student: str = field(
        default="resnet-50",
        metadata={"help": f"Hub id or folder of a model, a config as JSON, or one of {', '.join(PRESETS)}."},
    )
    student_pretrained: bool = field(default=False, metadata={"help": "Start from the student's own weights."})
    student_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the student."})

    image_size: int = field(default=224, metadata={"help": "Pixels of the student's crops."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.67, 1.0], metadata={"help": "Share of the area cropped."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    label_column: str | None = field(default=None, metadata={"help": "Labels; needed where it is not plain."})
    streaming: bool = field(default=False, metadata={"help": "Read rows in order, without downloading first."})
    max_samples: int | None = field(default=None, metadata={"help": "Use at most so many images."})

    knn_split: str | None = field(default=None, metadata={"help": "Labelled split to evaluate on; none: no kNN."})
    knn_bank_samples: int = field(default=10_000, metadata={"help": "Training images that kNN looks up."})
    knn_query_samples: int = field(default=2_000, metadata={"help": "Images of --knn_split that it classifies."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})
    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, print recipe, sizes, memory and steps, and stop."}
    )

    @property
    @abstractmethod
    def title(self) -> str:
        """The method's name on cards."""

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """The distiller with its teacher, checked before any weights are loaded where configs tell enough."""

    @abstractmethod
    def training_data(self, model: PreTrainedModel, seed: int, skipped_log: Path) -> Dataset:
        """The samples that `model` trains on."""

    @abstractmethod
    def describe_objective(self, model: PreTrainedModel) -> list[tuple[str, str]]:
        """Rows (what, value) of the start summary that only this method has."""

    def prepare(self, model: PreTrainedModel, seed: int) -> None:  # noqa: B027 (most methods need nothing)
        """What `model`, on its device, needs before a training that begins (not one that goes on)."""

    @cached_property
    def source(self) -> ImageSource:
        """The training split."""
        return self.open_split(self.split, self.max_samples, self.streaming)

    def open_split(self, split: str, samples: int | None, streaming: bool = False) -> ImageSource:
        """At most `samples` rows of a split of the dataset."""
        return load_images(
            self.dataset,
            split=split,
            config_name=self.dataset_config,
            revision=self.dataset_revision,
            streaming=streaming,
            image_column=self.image_column,
            label_column=self.label_column,
            max_samples=samples,
        )

    def dataset_of(self, transform: ImageTransform, seed: int, skipped_log: Path, **settings) -> Dataset:
        """The training split through `transform`, streaming or not; `settings` are the dataset's."""
        kind = StreamingDistillationDataset if self.streaming else DistillationDataset
        return kind(self.source, transform, seed=seed, skipped_log=skipped_log, **settings)

    def crop(self, model: PreTrainedModel, **settings) -> ImageTransform:
        """The random crop of these settings, normalised as `model` wants it; `settings` win."""
        defaults = {
            "image_size": self.image_size,
            "train": True,
            "crop_scale": tuple(self.crop_scale),
            "flip_probability": self.flip_probability,
            "image_mean": tuple(model.config.image_mean),
            "image_std": tuple(model.config.image_std),
        }
        return ImageTransform(**defaults | settings)

    def evaluation_data(self, model: PreTrainedModel) -> tuple[Dataset, Dataset] | None:
        """(bank, queries) of the kNN evaluation, None without `knn_split`."""
        if self.knn_split is None:
            return None
        transform = self.crop(model, train=False)
        splits = (self.split, self.knn_bank_samples), (self.knn_split, self.knn_query_samples)
        return tuple(EvaluationDataset(self.open_split(*split), transform) for split in splits)

    def student_config(self) -> PreTrainedConfig:
        """The student's config; a vision transformer's image size is set to that of the crops.

        Raises:
            ValueError: pre-trained weights are wanted of a student for another image size.
        """
        config = student_encoder_config(self.student, self.student_revision)
        if getattr(config, "patch_size", None) and getattr(config, "image_size", None) != self.image_size:
            if self.student_pretrained:
                raise ValueError(
                    f"image_size is {self.image_size}, but the pre-trained student {self.student!r} was made for "
                    f"{config.image_size}: set --image_size {config.image_size}, or leave --student_pretrained out."
                )
            config.image_size = self.image_size
        return config

    def load_student(self, encoder: PreTrainedModel) -> None:
        """With `student_pretrained`, load the student's own weights into its encoder.

        Raises:
            ValueError: some are missing.
        """
        if not self.student_pretrained:
            return
        student = AutoModel.from_pretrained(
            self.student, revision=self.student_revision, use_safetensors=True, dtype=torch.float32
        )
        missing = encoder.load_state_dict(student.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(f"the student {self.student!r} lacks {len(missing)} weights, the first {missing[0]!r}.")

    def load_teacher(
        self, kind: type[PatchTeacher] | type[ClassifierTeacher], **settings
    ) -> PatchTeacher | ClassifierTeacher:
        """The teacher that the settings name; `settings` are further arguments of its `from_pretrained`.

        Raises:
            ValueError: there is no such dtype.
        """
        if self.teacher_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"teacher_dtype is {self.teacher_dtype!r}: choose float32, bfloat16 or float16.")
        defaults = {"layers": self.teacher_layers, "image_size": self.teacher_image_size}
        return kind.from_pretrained(
            self.teacher,
            revision=self.teacher_revision,
            dtype=getattr(torch, self.teacher_dtype),
            **defaults | settings,
        )

    def load_any_teacher(self) -> PatchTeacher | ClassifierTeacher:
        """A `ClassifierTeacher` if the checkpoint is a classifier, else a `PatchTeacher` at about the crops' size."""
        if self.teacher is None:
            raise ValueError(f"method {self.method!r} needs a teacher: name one with --teacher.")
        config = AutoConfig.from_pretrained(self.teacher, revision=self.teacher_revision, trust_remote_code=False)
        if any("ForImageClassification" in name for name in config.architectures or ()):
            return self.load_teacher(ClassifierTeacher)
        patch = PatchTeacher.patch_size_of(self.teacher, revision=self.teacher_revision)
        fitting = max(1, self.image_size // patch) * patch
        return self.load_teacher(PatchTeacher, image_size=self.teacher_image_size or fitting)

    def identity(self, model: PreTrainedModel) -> dict:
        """All that decides what is learned, to be compared when a run goes on.

        The teacher is known by its weights too, and the data by its number of rows, since either may change under the
        same name.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in _CHANGE_NOTHING}
        settings["rows"] = self.source.num_rows
        settings["teacher_weights"] = weights_digest(model.teacher) if self.teacher else None
        return settings

    def describe(self, model: PreTrainedModel) -> list[tuple[str, str]]:
        """The start summary: rows of (what, value)."""
        images = "streaming" if self.source.num_rows is None else f"{self.source.num_rows:,} images"
        return [
            ("student", self.describe_student(model)),
            ("teacher", self.describe_teacher(model)),
            *self.describe_objective(model),
            ("data", f"{self.source.name}, split {self.source.split}, {images}, {self.image_size} px"),
        ]

    def describe_student(self, model: PreTrainedModel) -> str:
        """One line on the student."""
        student = model.student
        others = (model.num_parameters() - student.num_parameters()) / 1e6
        besides = f"; heads {others:.2g} M" if others else ""
        return f"{type(student).__name__} ({self.student}), {student.num_parameters() / 1e6:.1f} M parameters{besides}"

    def describe_teacher(self, model: PreTrainedModel) -> str:
        """One line on the teacher."""
        teacher = model.teacher
        size = "its images' size" if teacher.image_size is None else "x".join(map(str, teacher.image_size)) + " px"
        layers = ", ".join(map(str, teacher.layers))
        return (
            f"{teacher.name_or_path}, {teacher.num_parameters() / 1e6:.1f} M parameters, layers {layers} at {size}, "
            f"input {teacher.teacher_input}"
        )
