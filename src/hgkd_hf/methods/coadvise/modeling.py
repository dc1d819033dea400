"""Co-advise (arXiv:2106.12378): a ViT with two distillation tokens, each taught by a classifier of its own.

Tokens and losses are the paper's. Its tokens begin as patches that a convolution and an involution embed, ours as the
stock model's register tokens, drawn at random. It answers with the mean of three heads; a stock model has the class
token's alone, so that the exported student, and `image_logits`, answer with that one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import ModelOutput

from ...objectives.cross_bias import answer, token_distillation_losses
from ...teachers import SeveralClassifiers
from ..base.distiller import DistillerConfig
from ..base.image_classification import ImageClassificationDistiller
from .settings import CoAdviseSettings

NUM_TEACHERS = 2


class CoAdviseConfig(CoAdviseSettings, DistillerConfig):
    """Configuration of `CoAdviseForImageClassification`: the fields of `DistillerConfig` and of `CoAdviseSettings`.

    The student is a `Dinov2WithRegistersConfig`; its first two register tokens are the distillation tokens.
    """

    model_type = "coadvise"
    default_student = "dinov2_with_registers"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        student = self.student_config
        if student.model_type != "dinov2_with_registers" or student.num_register_tokens < NUM_TEACHERS:
            raise ValueError(
                f"Co-advise needs a student with {NUM_TEACHERS} or more register tokens, which become distillation "
                f"tokens, but {student.model_type!r} has too few: name a config or checkpoint of the model type "
                "dinov2_with_registers, e.g. facebook/dinov2-with-registers-small (--student)."
            )


@dataclass
class CoAdviseOutput(ModelOutput):
    """Output of `CoAdviseForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy of the class token's logits with the labels.
        first_loss, second_loss: scalars, KD of a distillation token with its teacher, in the order of `--teacher`.
        logits: (B, num_labels), the mean of the three tokens' logits, which is the paper's answer.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    first_loss: Tensor | None = None
    second_loss: Tensor | None = None
    logits: Tensor | None = None


class CoAdviseForImageClassification(ImageClassificationDistiller):
    """A stock ViT with register tokens as student, a head for each distillation token and, attached, two classifiers.

    Example:
        >>> teachers = [ClassifierTeacher.from_pretrained(name) for name in ("microsoft/resnet-50", "some/vit")]
        >>> teacher = SeveralClassifiers(teachers)
        >>> model = CoAdviseForImageClassification(CoAdviseConfig.for_teacher(teacher, student_config))
        >>> model.attach_teacher(teacher)(pixel_values, labels).loss.backward()
    """

    config_class = CoAdviseConfig

    def __init__(self, config: CoAdviseConfig):
        super().__init__(config)
        student = config.student_config
        self.heads = nn.ModuleList(nn.Linear(student.hidden_size, student.num_labels) for _ in range(NUM_TEACHERS))
        self.post_init()
        # The stock model begins with zeros, by which the tokens would be one and the same.
        nn.init.trunc_normal_(self.encoder.embeddings.register_tokens, std=student.initializer_range)

    def check_teacher(self, teacher: SeveralClassifiers) -> None:
        """Raise `ValueError` if they are not two classifiers that know the student's classes."""
        if not isinstance(teacher, SeveralClassifiers) or len(teacher.teachers) != NUM_TEACHERS:
            raise ValueError(
                f"Co-advise learns from {NUM_TEACHERS} teachers at once, but was given {teacher.name_or_path!r}: "
                "attach SeveralClassifiers([one, other])."
            )
        for one in teacher.teachers:
            self.match_teacher_classes(one, f"Co-advise compares logits with those of {one.name_or_path!r}")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> CoAdviseOutput:
        """Classify by all three tokens, and compare with labels and teachers.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: labels are missing.
        """
        config = self.config
        self.check_labels(labels, needed=True)
        taught = self.teach(pixel_values).logits
        class_logits, token_logits = self.tokens_logits(pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            class_logits, *token_logits = (logits.float() for logits in (class_logits, *token_logits))
            label_loss = F.cross_entropy(class_logits, labels)
            first, second = token_distillation_losses(token_logits, taught, config.temperature)
        loss = label_loss + config.distillation_weight * (first + second)
        return CoAdviseOutput(loss, label_loss, first, second, answer(class_logits, token_logits))

    def tokens_logits(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the class token and each distillation token say of images (B, 3, H, W): (B, num_labels) each."""
        kept: list[Tensor] = []
        with self.encoder.register_forward_hook(lambda module, args, output: kept.append(output.last_hidden_state)):
            class_logits = self.student(pixel_values).logits
        return class_logits, [head(kept[-1][:, place]) for place, head in enumerate(self.heads, start=1)]

    def describe_objective(self) -> dict[str, str]:
        """Weights and temperature."""
        config = self.config
        return {
            "objective": f"labels 1 (class token), KD {config.distillation_weight:g} of each of {NUM_TEACHERS} "
            f"distillation tokens with its teacher, T {config.temperature:g}"
        }


AutoConfig.register("coadvise", CoAdviseConfig)
AutoModelForImageClassification.register(CoAdviseConfig, CoAdviseForImageClassification)
