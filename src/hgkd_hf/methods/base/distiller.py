"""What a distiller is: all that trainer, evaluation, report and hub may ask of a method's model, and of its config."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import ModelOutput

from ...teachers import ClassifierTeacher, CNNTeacher, PatchTeacher, SeveralTeachers
from ...teachers.cache import CachedTeacher, recall
from ...teachers.showing import show
from .settings import MethodSettings

Teacher = PatchTeacher | CNNTeacher | ClassifierTeacher | CachedTeacher | SeveralTeachers


class DistillerConfig(MethodSettings, PreTrainedConfig):
    """Configuration of a distiller: its student, its teacher and, from the method's settings, everything else.

    Args:
        student_config: config (or its dict) of the student; it is copied. Default: that of `default_student`.
        teacher_name_or_path, teacher_revision, teacher_layers, teacher_image_size: of the teacher; of several a list
            with one for each, but for the layers.
        image_size: of the student's images in pixels, side or (height, width).
        image_mean, image_std: normalisation of the student's `pixel_values`.

    Raises:
        ValueError: a value is out of range, or two do not go together; the message names them.
    """

    sub_configs: ClassVar[dict[str, type]] = {"student_config": AutoConfig}
    default_student: ClassVar[str] = "resnet"

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    teacher_name_or_path: str | list[str] | None = None
    teacher_revision: str | list[str | None] | None = None
    teacher_layers: list[int] | tuple[int, ...] = ()
    teacher_image_size: list[Any] | tuple[int, ...] | None = None
    image_size: int | list[int] | tuple[int, ...] = 224
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self, **kwargs):
        if isinstance(self.student_config, PreTrainedConfig):
            self.student_config = copy.deepcopy(self.student_config)
        else:
            self.student_config = AutoConfig.for_model(
                **{"model_type": self.default_student} | (self.student_config or {})
            )
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.student_config.id2label, self.student_config.label2id
        self.settle()
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As every config's; a setting that the dict is too old to know has the value of `before`."""
        return super().from_dict(cls.before() | config_dict, **kwargs)

    @classmethod
    def for_teacher(cls, teacher: Teacher, student_config: PreTrainedConfig, **fields: Any) -> Self:
        """The configuration for distilling `teacher` into a student; `fields` are the other fields."""
        return cls(**cls.fields_of_teacher(teacher) | {"student_config": student_config} | fields)

    @classmethod
    def fields_of_teacher(cls, teacher: Teacher) -> dict[str, Any]:
        """The fields that tell which teacher it is, what it sees and gives; methods add theirs."""
        return {
            "teacher_name_or_path": teacher.name_or_path,
            "teacher_revision": teacher.revision,
            "teacher_layers": list(teacher.layers),
            "teacher_image_size": teacher.image_size and list(teacher.image_size),
        }


class LastMapConfig(DistillerConfig):
    """Base of the configurations of methods that compare the student with the last of the teacher's maps.

    Args:
        teacher_hidden_size: channels of that map.
    """

    teacher_hidden_size: int | None = None

    @classmethod
    def fields_of_teacher(cls, teacher: Teacher) -> dict[str, Any]:
        """With the width of its last map."""
        return super().fields_of_teacher(teacher) | {"teacher_hidden_size": teacher.hidden_sizes[-1]}


class Distiller(PreTrainedModel, ABC):
    """A student that learns from a teacher: the contract of a method with all that trains, judges and publishes it.

    The student is the attribute `student`. The teacher is attached, never owned: it is held outside the module tree,
    so that it is in no state dict, checkpoint, optimizer or DDP bucket, and `from_pretrained` need not know it.

    Attributes:
        classifies: whether the student has a classifier, so that `image_logits` can be asked.
        progress: share of the training's steps that is done, in [0, 1); the trainer sets it before every step.
        predicts_masked: whether `forward` takes `bool_masked_pos` and its output holds what was predicted there, as
            `HGKDOutput` does, to be drawn.
    """

    config: DistillerConfig
    base_model_prefix = "student"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    classifies: ClassVar[bool] = False
    predicts_masked: ClassVar[bool] = False
    progress: float = 0.0
    _attached: tuple[Teacher, ...] = ()

    @abstractmethod
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ModelOutput:
        """A `ModelOutput` with `loss` first; every further scalar is logged under its name.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            kwargs: what else the method's samples hold.
        """

    @abstractmethod
    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), for kNN and probes."""

    def image_logits(self, pixel_values: Tensor) -> Tensor:
        """The student's logits (B, num_labels) of images (B, 3, H, W), where it `classifies`."""
        raise NotImplementedError(f"the student of {type(self).__name__} has no classifier.")

    @property
    @abstractmethod
    def encoder(self) -> PreTrainedModel:
        """The stock `AutoModel` in the student, which pre-trained weights are loaded into."""

    @abstractmethod
    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers model; a copy, in eval mode."""

    @property
    def extended_student(self) -> PreTrainedModel | None:
        """The student with what its stock form leaves out and who trains it further may want, e.g. a decoder."""
        return None

    @abstractmethod
    def describe_objective(self) -> dict[str, str]:
        """What is learned, one fact an entry, for the start of a run and its card."""

    def describe_student(self) -> str:
        """One line on the student."""
        own = self.student.num_parameters()
        others = (self.num_parameters() - own) / 1e6
        besides = f"; heads {others:.2g} M" if others else ""
        return f"{type(self.student).__name__}, {own / 1e6:.1f} M parameters{besides}"

    @property
    def teacher(self) -> Teacher | None:
        """The attached teacher; None where none is attached, as for a method that needs none."""
        return self._attached[0] if self._attached else None

    def attach_teacher(self, teacher: Teacher) -> Self:
        """Let `teacher` teach; returns self.

        Raises:
            ValueError: its features are not those that this model was configured for.
        """
        self.check_teacher(teacher)
        self._attached = (teacher.requires_grad_(False).eval(),)  # a tuple: a module attribute would be registered
        return self

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` does not fit this model's configuration."""

    def teach(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, teacher_features: Tensor | None = None
    ) -> ModelOutput:
        """What the teacher sees in images normalised for the student: its output, with `feature_maps` (B, D, th, tw).

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            bool_masked_pos: (B, gh, gw) bool, True = hidden, for a teacher that sees what is visible.
            teacher_features: (B, C, th, tw), what it saw in these images before, the maps of all layers one after the
                other: it is not asked again.

        Raises:
            RuntimeError: no teacher is attached.
        """
        teacher = self.teacher
        if teacher is None:
            raise RuntimeError(
                f"{type(self).__name__} has no teacher: attach one with model.attach_teacher(teacher); it was "
                f"configured for {self.config.teacher_name_or_path!r} (teacher_name_or_path)."
            )
        if teacher_features is not None:
            return recall(teacher_features, teacher.hidden_sizes)
        return show(teacher, pixel_values, self.config.image_mean, self.config.image_std, bool_masked_pos)
