"""What a command needs of a method: its model and its samples, made from the settings."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ...checkpoints.identity import weights_digest
from ...data import (
    CachedTeacherDataset,
    DistillationDataset,
    EvaluationDataset,
    ImageSource,
    ImageTransform,
    StreamingDistillationDataset,
    bank_and_queries,
    open_split,
)
from ...students.features import vit_patch_size
from ...students.presets import student_encoder_config, student_weights
from ...teachers import ClassifierTeacher, PatchTeacher, SeveralTeachers
from ...teachers.cache import CachedTeacher, TeacherCache, open_cache
from .command_settings import CommandSettings
from .distiller import Distiller, Teacher
from .settings import as_list

# Settings that decide what is measured, or how a run begins, but not what is learned.
_CHANGE_NOTHING = ("resume", "dry_run", "knn_split", "knn_bank_samples", "knn_query_samples")
# Settings whose final values the teacher itself tells the config: a commit for a branch, a size for none.
_OF_THE_TEACHER = ("teacher_revision", "teacher_image_size")


@dataclass
class Method(CommandSettings):
    """What is distilled from what, on which images; a method's own class adds its settings and names its model.

    Attributes:
        model_class: the method's distiller. Its config takes the settings that are fields of it.
        several_teachers: what stands for several teachers; None for a method that learns from one.
    """

    model_class: ClassVar[type[Distiller]]
    several_teachers: ClassVar[type[SeveralTeachers] | None] = None

    def check(self) -> None:
        """Also refuse more teachers than the method learns from."""
        super().check()
        if self.several_teachers is None and len(as_list(self.teacher)) > 1:
            raise ValueError(
                f"method {self.method!r} learns from one teacher, but --teacher names {len(self.teacher)}: name one."
            )

    def build_model(self) -> Distiller:
        """The distiller with its teacher, checked before any weights are loaded where configs tell enough."""
        student_config, shared = self.student_config(), self.config_settings()
        config = self.model_class.config_class(student_config=student_config, **shared)
        if config.needs_teacher:
            teacher = self.load_teachers(student_config) if self.cache is None else self.cached_teacher()
            config = type(config).for_teacher(teacher, student_config, **shared)
            model = self.model_class(config).attach_teacher(teacher)
        else:
            model = self.model_class(config)
        self.load_student(model.encoder)
        return model

    def config_settings(self) -> dict[str, Any]:
        """The settings that are fields of the model's config."""
        known = {item.name for item in fields(self.model_class.config_class)}.difference(_OF_THE_TEACHER)
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name in known}

    def training_data(self, model: Distiller, seed: int, skipped_log: Path | None) -> Dataset:
        """The samples that `model` trains on: one crop of every image."""
        return self.dataset_of(self.crop(model), seed, skipped_log)

    def prepare(self, model: Distiller, seed: int) -> None:
        """What `model`, on its device, needs before a training that begins (not one that is resumed)."""

    @cached_property
    def source(self) -> ImageSource:
        """The training split."""
        return open_split(self, streaming=self.streaming)

    @cached_property
    def cache(self) -> TeacherCache | None:
        """What the teacher saw, where that was written down and is wanted."""
        return None if self.teacher_cache is None or not self.needs_teacher else open_cache(self.teacher_cache)

    def dataset_of(self, transform: ImageTransform, seed: int, skipped_log: Path | None, **settings) -> Dataset:
        """The training split through `transform`, streaming or not; `settings` are the dataset's."""
        if self.cache is not None:
            views = replace(transform, **self.cache.info.transform)
            return CachedTeacherDataset(
                self.source, views, cache=self.cache, seed=seed, skipped_log=skipped_log, **settings
            )
        kind = DistillationDataset
        if self.streaming:
            kind = partial(StreamingDistillationDataset, shuffle_buffer=self.shuffle_buffer)
        return kind(self.source, transform, seed=seed, skipped_log=skipped_log, **settings)

    def crop(self, model: Distiller, **settings) -> ImageTransform:
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

    def evaluation_data(self, model: Distiller) -> tuple[Dataset, Dataset] | None:
        """(bank, queries) of the kNN evaluation, None without `knn_split`.

        Raises:
            ValueError: see `bank_and_queries`.
        """
        if self.knn_split is None:
            return None
        bank = open_split(self, samples_field="knn_bank_samples")
        queries = open_split(self, "knn_split", "knn_query_samples")
        transform = self.crop(model, train=False)
        return tuple(EvaluationDataset(source, transform) for source in bank_and_queries(bank, queries))

    def student_config(self) -> PreTrainedConfig:
        """The student's config; a vision transformer's image size is set to that of the crops.

        Raises:
            ValueError: pre-trained weights are wanted of a student for another image size.
        """
        config = student_encoder_config(self.student, self.student_revision)
        if vit_patch_size(config) and config.image_size != self.image_size:
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
            ValueError: it has none, or some are missing.
        """
        if not self.student_pretrained:
            return
        name, revision = student_weights(self.student, self.student_revision)
        student = AutoModel.from_pretrained(name, revision=revision, use_safetensors=True, dtype=torch.float32)
        missing = encoder.load_state_dict(student.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(f"the student {self.student!r} lacks {len(missing)} weights, the first {missing[0]!r}.")

    def load_teachers(self, student_config: PreTrainedConfig) -> Teacher:
        """The teacher, or several as one: each is loaded as if it were the only one."""
        names = as_list(self.teacher) or [None]
        teachers = []
        for name, revision in zip(names, as_list(self.teacher_revision) or [None] * len(names)):
            alone = copy.copy(self)
            alone.teacher, alone.teacher_revision = name, revision
            teachers.append(alone.load_teacher(student_config))
        return teachers[0] if len(teachers) == 1 else self.several_teachers(teachers)

    def load_teacher(self, student_config: PreTrainedConfig) -> Teacher:
        """A `ClassifierTeacher` if the checkpoint is a classifier, else a `PatchTeacher` at about the crops' size.

        Raises:
            ValueError: no teacher is named.
        """
        if self.teacher is None:
            raise ValueError(f"method {self.method!r} needs a teacher: name one with --teacher.")
        config = AutoConfig.from_pretrained(self.teacher, revision=self.teacher_revision, trust_remote_code=False)
        if any("ForImageClassification" in name for name in config.architectures or ()):
            return self.read_teacher(ClassifierTeacher)
        patch = PatchTeacher.patch_size_of(self.teacher, revision=self.teacher_revision)
        fitting = max(1, self.image_size // patch) * patch
        return self.read_teacher(PatchTeacher, image_size=self.teacher_image_size or fitting)

    def cached_teacher(self) -> CachedTeacher:
        """Stands for the teacher that wrote the cache.

        Raises:
            ValueError: a setting contradicts the cache, or these are not the images that it was written from.
        """
        info = self.cache.info
        if self.streaming:
            raise ValueError("--teacher_cache looks features up by row, and a stream has none: leave --streaming out.")
        info.check_settings({item.name: getattr(self, item.name) for item in fields(self)})
        info.check_images(self.dataset, self.source.num_rows, self.source.image_fingerprint)
        return CachedTeacher(info)

    def read_teacher(self, kind: type[Teacher], **settings: Any) -> Teacher:
        """The checkpoint that the settings name; `settings` are further arguments of `kind.from_pretrained`."""
        defaults = {"layers": self.teacher_layers, "image_size": self.teacher_image_size}
        return kind.from_pretrained(
            self.teacher,
            revision=self.teacher_revision,
            dtype=getattr(torch, self.teacher_dtype),
            **defaults | settings,
        )

    def identity(self, model: Distiller) -> dict:
        """All that decides what is learned, to be compared when a run is resumed.

        The teacher is known by its weights too, and the data by its number of rows and a hash of them, since either
        may change under the same name.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in _CHANGE_NOTHING}
        settings |= {"rows": self.source.num_rows, "images": self.source.fingerprint}
        settings["teacher_weights"] = None if model.teacher is None else weights_digest(model.teacher)
        if self.cache is not None:  # wherever it lies
            settings |= {"teacher_cache": self.cache.digest, "teacher_weights": self.cache.info.teacher_weights}
        return settings

    @classmethod
    def earlier(cls) -> dict[str, Any]:
        """The identity's settings as a run of before they existed has them: its `before`, else the default."""
        known = asdict(cls(dataset="")) | cls.before()
        return {name: value for name, value in known.items() if name not in _CHANGE_NOTHING}

    def describe(self, model: Distiller) -> dict[str, str]:
        """The start summary: what the run is, one fact an entry."""
        images = "streaming" if self.source.num_rows is None else f"{self.source.num_rows:,} images"
        return {
            "student": f"{self.student}: {model.describe_student()}",
            "teacher": self.describe_teacher(model),
            **model.describe_objective(),
            "data": f"{self.source.name}, split {self.source.split}, {images}, {self.image_size} px",
        }

    def describe_teacher(self, model: Distiller) -> str:
        """One line on the teacher, or teachers, if there is one."""
        teacher = model.teacher
        if teacher is None:
            return f"none: {self.title} needs none"
        teachers = teacher.teachers if isinstance(teacher, SeveralTeachers) else (teacher,)
        return "; ".join(map(self._describe_one, teachers))

    def _describe_one(self, teacher: Teacher) -> str:
        weights = f"{teacher.num_parameters() / 1e6:.1f} M parameters" if self.cache is None else self.cache.describe()
        size = "its images' size" if teacher.image_size is None else "x".join(map(str, teacher.image_size)) + " px"
        layers = ", ".join(map(str, teacher.layers))
        return f"{teacher.name_or_path}, {weights}, layers {layers} at {size}, input {teacher.teacher_input}"
