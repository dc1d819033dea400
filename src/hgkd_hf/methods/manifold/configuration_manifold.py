"""Configuration of manifold distillation."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ...students.classifier_layers import student_layers
from ...teachers import ClassifierTeacher, PatchTeacher
from ..base.configuration_distiller import DistillerConfig


class ManifoldDistillationConfig(DistillerConfig):
    """Configuration of `ManifoldDistillationForImageClassification`.

    loss = (1 - alpha) * label loss + alpha * distillation loss of logits + beta * manifold loss, a term of weight 0
    not being computed. Weights are those of the main run of arXiv:2107.01378, CaiT-S24 into DeiT-Tiny, which paired
    the blocks 1-4 and 9-12 with 1-4 and 21-24. The other fields are those of `DistillerConfig`; the student is any
    `AutoModelForImageClassification`, a plain ViT or a CNN with maps at several scales.

    Args:
        student_layers: i = output of the student's i-th block (ViT) or its i-th scale, finest first (CNN); -1 = its
            `last_hidden_state`. Paired with `teacher_layers` one by one.
        alpha: share of the teacher's logits, 0 (any `PatchTeacher` will do) to 1 (labels are not needed).
        beta: weight of the manifold loss; 0 leaves logit distillation, or with alpha 0 labels alone.
        distillation: `"soft"`: probabilities at `temperature` (KD); `"hard"`: the teacher's decisions.
        temperature: of the soft distillation.
        intra_weight, inter_weight, random_weight: weights inside the manifold loss.
        num_samples: tokens that the random term draws.
        gather: images of all processes are related to each other; the published formulation stays inside a process.

    Raises:
        ValueError: a value is out of range, or the layers do not pair up; the message names them.
    """

    model_type = "manifold_distillation"

    student_layers: list[int] | tuple[int, ...] = ()
    alpha: float = 1.0
    beta: float = 1.0
    distillation: str = "soft"
    temperature: float = 1.0
    intra_weight: float = 4.0
    inter_weight: float = 0.1
    random_weight: float = 0.2
    num_samples: int = 192
    gather: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but it must lie in [0, 1].")
        self.check_not_negative("beta", "intra_weight", "inter_weight", "random_weight")
        self.check_choices(distillation=("soft", "hard"))
        self.check_positive("temperature", "num_samples")
        if not self.beta:
            self.student_layers, self.teacher_layers = (), ()
        if len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                f"student_layers {tuple(self.student_layers)} and teacher_layers {tuple(self.teacher_layers)} are "
                f"paired one by one, but are {len(self.student_layers)} and {len(self.teacher_layers)}."
            )
        known = student_layers(self.student_config)
        wrong = [layer for layer in self.student_layers if layer not in known]
        if wrong:
            raise ValueError(
                f"student_layers names layer {wrong[0]}, but the student ({self.student_config.model_type}) has "
                f"1 to {len(known) - 1}, and -1."
            )

    @classmethod
    def for_teacher(
        cls, teacher: PatchTeacher | ClassifierTeacher, student_config: PreTrainedConfig, **kwargs
    ) -> ManifoldDistillationConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields.

        Unless given, alpha is 1 with a teacher that classifies, else 0.
        """
        fields = cls.fields_of_teacher(teacher) | {"student_config": student_config.to_dict()}
        fields["alpha"] = float(hasattr(teacher, "num_labels"))
        return cls(**fields | kwargs)
