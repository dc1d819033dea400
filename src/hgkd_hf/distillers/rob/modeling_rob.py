"""RoB: the momentum branch of self-supervised learning is replaced by a frozen teacher (arXiv:2301.09451).

Its teachers bring their self-supervised heads; ours is any vision transformer, whose image features are compared with
prototypes fitted to them once by spherical k-means.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ...objectives.assignment import assignment_loss, dino_targets, msn_targets, swav_targets
from ...objectives.prototypes import fit_prototypes, prototype_scores
from ...students.features import pooled_features
from ...teachers import PatchTeacher
from ..attached_teacher import AttachedTeacherMixin
from .configuration_rob import RoBConfig
from .heads import PrototypeHead, build_head

TARGETS = {"dino": dino_targets, "swav": swav_targets, "msn": msn_targets}


@dataclass
class RoBOutput(ModelOutput):
    """Output of `RoBForPreTraining`; scalars beside `loss` are its named terms.

    Args:
        loss: scalar, the mean cross-entropy over the allowed pairs of teacher crop and student view.
        global_loss, local_loss: scalars, the same over the pairs with such views; None where there are none.
        target_entropy: scalar, the lower bound of `loss`.
        student_scores: for each view, global ones first, (B, K).
    """

    loss: Tensor | None = None
    global_loss: Tensor | None = None
    local_loss: Tensor | None = None
    target_entropy: Tensor | None = None
    student_scores: tuple[Tensor, ...] | None = None


class RoBForPreTraining(AttachedTeacherMixin, PreTrainedModel):
    """Student, head, the teacher's prototypes and, attached from outside, the teacher.

    Example:
        >>> teacher = PatchTeacher.from_pretrained("facebook/dinov2-small", image_size=224)
        >>> model = RoBForPreTraining(RoBConfig.for_teacher(teacher, student_config)).attach_teacher(teacher)
        >>> model.fit_prototypes(batches)
        >>> model(global_crops, local_crops).loss.backward()
    """

    config_class = RoBConfig
    base_model_prefix = "student"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: RoBConfig):
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise ValueError(
                "no teacher_hidden_size is known: build the config with RoBConfig.for_teacher(teacher, ...)."
            )
        self.student = AutoModel.from_config(config.student_config)
        self.head = build_head(config, *_pooled_width(config.student_config))
        # Zeros until they are fitted; saved, since the head's scores mean nothing without them.
        self.register_buffer("prototypes", torch.zeros(config.num_prototypes, config.teacher_hidden_size))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):  # DINO's 0.02 at its width of 2048, and as lively at any other
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, PrototypeHead):
            init.trunc_normal_(module.prototypes, std=0.02)
            if module.gain is not None:
                init.ones_(module.gain)

    def check_teacher(self, teacher: PatchTeacher) -> None:
        """Raise `ValueError` if `teacher` does not give the feature that the prototypes stand for."""
        given = (tuple(teacher.layers[-1:]), teacher.hidden_sizes[-1], teacher.teacher_input)
        wanted = (tuple(self.config.teacher_layers[-1:]), self.config.teacher_hidden_size, "full")
        if given != wanted:
            raise ValueError(
                f"the teacher's last layer, its width and teacher_input are {given}, but this model was built for "
                f"{wanted} (teacher_layers, teacher_hidden_size)."
            )

    @torch.no_grad()
    def fit_prototypes(
        self, batches: Iterable[Tensor | Mapping[str, Tensor]], iterations: int = 20, seed: int = 0
    ) -> RoBForPreTraining:
        """Fit the prototypes to the teacher's features of some images, once before training; returns self.

        Args:
            batches: `pixel_values` (B, 3, H, W) or (B, G, 3, H, W), or dicts with them; several times
                `num_prototypes` images in all. Every process must be given the same.
            iterations: of spherical k-means.
            seed: of its random choices.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: there are fewer images than prototypes.
        """
        features = []
        for batch in batches:
            images = batch["pixel_values"] if isinstance(batch, Mapping) else batch
            features.append(self._teacher_features(_as_views(images).flatten(0, 1).to(self.prototypes.device)))
        count = sum(map(len, features))
        if count < self.config.num_prototypes:
            raise ValueError(
                f"num_prototypes is {self.config.num_prototypes}, but there are {count} images to fit them to: give "
                f"more, or lower num_prototypes."
            )
        generator = torch.Generator().manual_seed(seed)
        fitted = fit_prototypes(torch.cat(features), self.config.num_prototypes, iterations, generator)
        self.prototypes.copy_(fitted)
        return self

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), of any size that it takes."""
        flexible = "interpolate_pos_encoding" in inspect.signature(self.student.forward).parameters
        student = partial(self.student, interpolate_pos_encoding=True) if flexible else self.student
        return pooled_features(student, pixel_values)

    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers model; a copy, in eval mode."""
        return copy.deepcopy(self.student).eval()

    def forward(self, pixel_values: Tensor, local_pixel_values: Tensor | None = None, **kwargs) -> RoBOutput:
        """Assign the global crops to prototypes by the teacher, and all crops by the student.

        Args:
            pixel_values: (B, G, 3, H, W) global crops, or (B, 3, H, W) for one of each image; normalised with
                `config.image_mean` and `config.image_std`.
            local_pixel_values: (B, L, 3, h, w), which the teacher does not see.

        Raises:
            RuntimeError: no teacher is attached, or the prototypes are not fitted.
            ValueError: shapes are wrong, or swapped assignment has one view only.
        """
        config = self.config
        views = [_as_views(pixel_values)]
        if local_pixel_values is not None:
            views.append(_as_views(local_pixel_values, "local_pixel_values"))
        if len({len(crops) for crops in views}) > 1:
            raise ValueError(
                f"pixel_values {tuple(pixel_values.shape)} and local_pixel_values {tuple(local_pixel_values.shape)} "
                f"are crops of different numbers of images."
            )
        teacher_features = self._teacher_features(views[0].flatten(0, 1))
        if not self.prototypes.any():
            raise RuntimeError(
                f"{type(self).__name__} has no prototypes: fit them once with model.fit_prototypes(batches)."
            )
        # One forward for each size of crops, then the head on all of them, as in the multi-crop methods.
        scores = self.head(torch.cat([self.image_features(crops.flatten(0, 1)) for crops in views]))
        with torch.autocast(pixel_values.device.type, enabled=False):
            prototypes = self.prototypes.float()
            scores = scores.float()
            if config.student_head == "teacher_proto":
                scores = scores @ prototypes.T
            sizes = [crops.shape[0] * crops.shape[1] for crops in views]
            by_view = [part.unflatten(0, crops.shape[:2]).unbind(1) for part, crops in zip(scores.split(sizes), views)]
            student_scores = tuple(view for group in by_view for view in group)
            teacher_scores = prototype_scores(teacher_features, prototypes).unflatten(0, views[0].shape[:2])
            losses = assignment_loss(
                student_scores,
                [TARGETS[config.ssl_method](crop, config.teacher_temperature) for crop in teacher_scores.unbind(1)],
                num_global=views[0].shape[1],
                swapped=config.swapped,
                temperature=config.student_temperature,
            )
        return RoBOutput(
            loss=losses["loss"],
            global_loss=losses.get("global"),
            local_loss=losses.get("local"),
            target_entropy=losses["target_entropy"],
            student_scores=student_scores,
        )

    def _teacher_features(self, pixel_values: Tensor) -> Tensor:
        return self.teach(pixel_values).feature_maps[-1].mean((2, 3))


def _as_views(pixel_values: Tensor, name: str = "pixel_values") -> Tensor:
    """(B, V, 3, H, W), of which (B, 3, H, W) is the case V = 1."""
    views = pixel_values.unsqueeze(1) if pixel_values.dim() == 4 else pixel_values
    if views.dim() != 5:
        raise ValueError(f"{name} {tuple(pixel_values.shape)} must be (B, crops, 3, height, width).")
    return views


def _pooled_width(config: PreTrainedConfig) -> tuple[int, bool]:
    """The width of a student's image feature, and whether it is a CNN (gives maps)."""
    side = getattr(config, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else side
    with torch.device("meta"), torch.no_grad():
        student = AutoModel.from_config(config).eval()
        images = torch.empty(1, getattr(config, "num_channels", 3), height, width)
        return pooled_features(student, images).shape[1], student(images).last_hidden_state.dim() == 4
