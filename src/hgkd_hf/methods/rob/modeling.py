"""RoB: the momentum branch of self-supervised learning is replaced by a frozen teacher (arXiv:2301.09451).

Its teachers bring their self-supervised heads. So may ours; of any other teacher, features are compared with
prototypes that are fitted to them once by spherical k-means.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ...objectives.assignment import assignment_loss, dino_targets, msn_targets, swav_targets
from ...objectives.distributed import shared_generator
from ...objectives.masked_patches import masked_patch_loss
from ...objectives.prototypes import fit_prototypes, prototype_scores
from ...students.features import pooled_features, vit_patch_size
from ...teachers import TeacherHead
from ..base.distiller import Distiller, LastMapConfig, Teacher
from ..base.image_classification import resize_map
from .heads import PrototypeHead, build_head, pooled_width
from .settings import RoBSettings
from .tokens import build_student, dropped_tokens

# How sharp each method's targets are (arXiv:2301.09451; SwAV's is the epsilon of Sinkhorn-Knopp).
TEACHER_TEMPERATURES = {"dino": 0.07, "ibot": 0.07, "swav": 0.03, "msn": 0.025}
TARGETS = {"dino": dino_targets, "ibot": dino_targets, "swav": swav_targets, "msn": msn_targets}


class RoBConfig(RoBSettings, LastMapConfig):
    """Configuration of `RoBForPreTraining`: the fields of `LastMapConfig` and of `RoBSettings`.

    The student is any `AutoModel` for images, CNN or ViT; the last of the teacher's layers, averaged over patches, is
    its image feature.

    Args:
        teacher_hidden_size: width of that feature or, with the teacher's own head (`teacher_head`), which takes the
            class token, of the head's embedding.
    """

    model_type = "rob"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.teacher_temperature is None:
            self.teacher_temperature = TEACHER_TEMPERATURES[self.ssl_method]
        if not self.student_grid and (self.ssl_method == "ibot" or self.token_drop_ratio):
            wanted = "ssl_method 'ibot'" if self.ssl_method == "ibot" else f"token_drop_ratio {self.token_drop_ratio}"
            raise ValueError(
                f"{wanted} hides patches from a vision transformer, but the student is a "
                f"{self.student_config.model_type} model: take a ViT, or dino, swav or msn without dropping."
            )

    @property
    def student_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of a ViT student's patches in a global crop; None for a CNN."""
        patch = vit_patch_size(self.student_config)
        if patch is None:
            return None
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return sides[0] // patch, sides[1] // patch

    @classmethod
    def for_teacher(
        cls, teacher: Teacher, student_config: PreTrainedConfig, head: TeacherHead | None = None, **fields: Any
    ) -> Self:
        """See `DistillerConfig`; the teacher's own `head` decides the number of prototypes."""
        if head is not None:
            fields["num_prototypes"], fields["teacher_hidden_size"] = head.prototypes.shape
            fields["teacher_head"] = head.name_or_path or "given"
        return super().for_teacher(teacher, student_config, **fields)


@dataclass
class RoBOutput(ModelOutput):
    """Output of `RoBForPreTraining`; scalars beside `loss` are its named terms.

    Args:
        loss: scalar, the mean cross-entropy over the allowed pairs of teacher crop and student view; for iBOT plus
            `patch_weight` times the patch term.
        patch_loss: scalar, iBOT's term for hidden patches; None for other methods.
        global_loss, local_loss: scalars, the same over the pairs with such views; None where there are none.
        target_entropy: scalar, the lower bound of `loss`.
        student_scores: for each view, global ones first, (B, K).
    """

    loss: Tensor | None = None
    global_loss: Tensor | None = None
    local_loss: Tensor | None = None
    target_entropy: Tensor | None = None
    patch_loss: Tensor | None = None
    student_scores: tuple[Tensor, ...] | None = None


class RoBForPreTraining(Distiller):
    """Student, head, prototypes where the teacher has no head of its own and, attached from outside, the teacher.

    Example:
        >>> teacher = PatchTeacher.from_pretrained("facebook/dinov2-small", image_size=224)
        >>> model = RoBForPreTraining(RoBConfig.for_teacher(teacher, student_config)).attach_teacher(teacher)
        >>> model.fit_prototypes(batches)
        >>> model(global_crops, local_crops).loss.backward()
    """

    config_class = RoBConfig
    _teacher_head: tuple[TeacherHead, ...] = ()

    def __init__(self, config: RoBConfig):
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise ValueError(
                "no teacher_hidden_size is known: build the config with RoBConfig.for_teacher(teacher, ...)."
            )
        self.student = build_student(config.student_config, masks=config.ssl_method == "ibot")
        self.head = build_head(config, *pooled_width(config.student_config), config.teacher_hidden_size)
        if config.teacher_head is None:
            # Zeros until they are fitted; saved, since the head's scores mean nothing without them.
            self.register_buffer("prototypes", torch.zeros(config.num_prototypes, config.teacher_hidden_size))
            # What a teacher's features have in common, and channels louder than others, would make all cosines alike
            # and the targets nearly uniform; heads learn to do without, k-means does not.
            self.register_buffer("feature_mean", torch.zeros(config.teacher_hidden_size))
            self.register_buffer("feature_std", torch.ones(config.teacher_hidden_size))
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

    def attach_teacher(self, teacher: Teacher, head: TeacherHead | None = None) -> RoBForPreTraining:
        """Let `teacher`, with its own `head` if this model was built for one, teach; returns self.

        Raises:
            ValueError: its features, or the head's scores, are not those that this model was configured for.
        """
        config = self.config
        if (head is None) != (config.teacher_head is None):
            given = "none is given" if head is None else "one is given"
            raise ValueError(f"this model was built for teacher_head {config.teacher_head!r}, but {given}.")
        if head is not None:
            wanted, given = (config.num_prototypes, config.teacher_hidden_size), tuple(head.prototypes.shape)
            if wanted != given or head.in_features != teacher.hidden_sizes[-1]:
                raise ValueError(
                    f"the teacher's head takes {head.in_features} channels and has {given} prototypes, but the "
                    f"teacher gives {teacher.hidden_sizes[-1]}, and this model was built for {wanted} "
                    f"(num_prototypes, teacher_hidden_size)."
                )
            self._teacher_head = (head,)
        return super().attach_teacher(teacher)

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` does not give the feature that the prototypes stand for."""
        width = self.config.teacher_hidden_size if self.config.teacher_head is None else teacher.hidden_sizes[-1]
        given = (tuple(teacher.layers[-1:]), teacher.hidden_sizes[-1], teacher.teacher_input)
        wanted = (tuple(self.config.teacher_layers[-1:]), width, "full")
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

        For iBOT, whose prototypes serve patches too, a random patch of every image counts beside the image.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: there are fewer images than prototypes, or the teacher has a head of its own.
        """
        if self.config.teacher_head is not None:
            raise ValueError(f"the prototypes are those of teacher_head {self.config.teacher_head!r}: fit none.")
        features, count = [], 0
        generator = torch.Generator().manual_seed(seed)
        for batch in batches:
            images = batch["pixel_values"] if isinstance(batch, Mapping) else batch
            patches = self.teach(_as_views(images).flatten(0, 1).to(self.prototypes.device)).feature_maps[-1]
            features.append(patches.mean((2, 3)))
            count += len(patches)
            if self.config.ssl_method == "ibot":
                patches = patches.flatten(2)
                drawn = torch.randint(patches.shape[2], (len(patches),), generator=generator)
                features.append(patches[torch.arange(len(patches)), :, drawn])
        if count < self.config.num_prototypes:
            raise ValueError(
                f"num_prototypes is {self.config.num_prototypes}, but there are {count} images to fit them to: give "
                f"more, or lower num_prototypes."
            )
        features = torch.cat(features)
        self.feature_mean.copy_(features.mean(0))
        self.feature_std.copy_(features.std(0))
        features = self._standardised(features)
        self.prototypes.copy_(fit_prototypes(features, self.config.num_prototypes, iterations, generator))
        return self

    def _standardised(self, features: Tensor) -> Tensor:
        """Teacher features (..., D), each channel with mean 0 and standard deviation 1 over the fitted images."""
        return (features - self.feature_mean) / self.feature_std.clamp(min=1e-6)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), of any size that it takes."""
        return pooled_features(self._run_student, pixel_values)

    def _run_student(self, pixel_values: Tensor, **arguments: Tensor) -> ModelOutput:
        if "interpolate_pos_encoding" in inspect.signature(self.student.forward).parameters:
            arguments["interpolate_pos_encoding"] = True
        return self.student(pixel_values, **arguments)

    @property
    def encoder(self) -> PreTrainedModel:
        """The student."""
        return self.student

    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers model; a copy, in eval mode, without a mask token that it adds."""
        native = AutoModel.from_config(copy.deepcopy(self.config.student_config))
        native.load_state_dict(self.student.state_dict(), strict=False)
        return native.eval()

    def forward(
        self,
        pixel_values: Tensor,
        local_pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs,
    ) -> RoBOutput:
        """Assign the global crops to prototypes by the teacher, and all crops by the student.

        MSN's choice of tokens draws from torch's global CPU generator, the first process's for all.

        Args:
            pixel_values: (B, G, 3, H, W) global crops, or (B, 3, H, W) for one of each image; normalised with
                `config.image_mean` and `config.image_std`.
            local_pixel_values: (B, L, 3, h, w), which the teacher does not see.
            bool_masked_pos: (B, G, gh, gw) bool, True = hidden from the student in the global crops, on its own
                patches; for iBOT only, and needed there.

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
        hidden = self._check_mask(bool_masked_pos, views[0])
        crops = views[0].flatten(0, 1)
        teacher_scores, patch_targets = self._teacher_scores(crops, hidden)
        # One forward for each size of crops, then the head on all of them, as in the multi-crop methods.
        features, patches = self._global_features(crops, hidden)
        features = [features, *(self.image_features(local.flatten(0, 1)) for local in views[1:])]
        scores = self.head(torch.cat([*features, *patches]))
        with torch.autocast(pixel_values.device.type, enabled=False):
            scores = scores.float()
            if config.student_head == "teacher_proto":
                scores = scores @ self._prototypes.T
            *by_size, patch_scores = scores.split([*map(len, features), sum(map(len, patches))])
            by_view = [part.unflatten(0, group.shape[:2]).unbind(1) for part, group in zip(by_size, views)]
            student_scores = tuple(view for group in by_view for view in group)
            target = TARGETS[config.ssl_method]
            losses = assignment_loss(
                student_scores,
                [
                    target(crop, config.teacher_temperature)
                    for crop in teacher_scores.unflatten(0, views[0].shape[:2]).unbind(1)
                ],
                num_global=views[0].shape[1],
                swapped=config.swapped,
                temperature=config.student_temperature,
            )
            loss, patch_loss = losses["loss"], None
            if hidden is not None:
                targets = target(patch_targets, config.teacher_temperature)
                patch_loss = masked_patch_loss(patch_scores, targets, hidden, config.student_temperature)
                loss = loss + config.patch_weight * patch_loss
        return RoBOutput(
            loss=loss,
            global_loss=losses.get("global"),
            local_loss=losses.get("local"),
            target_entropy=losses["target_entropy"],
            patch_loss=patch_loss,
            student_scores=student_scores,
        )

    def describe_objective(self) -> dict[str, str]:
        """How images are assigned."""
        config = self.config
        rule = "swapped" if config.swapped else "not swapped"
        patches = f", patches {config.patch_weight:g}" if config.ssl_method == "ibot" else ""
        return {
            "objective": f"{config.title}, {config.num_prototypes} prototypes, head {config.student_head}, {rule}, "
            f"temperatures {config.teacher_temperature} and {config.student_temperature}{patches}"
        }

    def _prototype_scores(self, features: Tensor) -> Tensor:
        """Cosines (n, K) of teacher features (n, D) with the fitted prototypes."""
        return prototype_scores(self._standardised(features), self._prototypes)

    @property
    def _prototypes(self) -> Tensor:
        return self.prototypes.float() if self.config.teacher_head is None else self._teacher_head[0].prototypes

    def _check_mask(self, bool_masked_pos: Tensor | None, views: Tensor) -> Tensor | None:
        """(B * G, gh, gw) bool for iBOT, None for others."""
        if self.config.ssl_method != "ibot":
            return None
        expected = (*views.shape[:2], *self.config.student_grid)
        if bool_masked_pos is None or bool_masked_pos.shape != expected:
            given = None if bool_masked_pos is None else tuple(bool_masked_pos.shape)
            raise ValueError(f"ssl_method 'ibot' needs bool_masked_pos {expected}, but it is {given}.")
        return bool_masked_pos.flatten(0, 1)

    def _teacher_scores(self, crops: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The teacher's scores (B * G, K) of global crops, and (M, K) of the patches that are hidden."""
        output = self.teach(crops)
        feature_map = output.feature_maps[-1]
        features = feature_map.mean((2, 3))
        if self._teacher_head:
            score = self._teacher_head[0].to(crops.device)
            features = features if output.class_token is None else output.class_token
        elif self.prototypes.any():
            score = self._prototype_scores
        else:
            raise RuntimeError(
                f"{type(self).__name__} has no prototypes: fit them once with model.fit_prototypes(batches)."
            )
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            if hidden is None:
                return score(features), None
            patches = resize_map(feature_map, hidden.shape[1:]).permute(0, 2, 3, 1)[hidden]
            return score(features), score(patches)

    def _global_features(self, crops: Tensor, hidden: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The student's features (B * G, C) of global crops and, for iBOT, (M, C) of the patches hidden from it."""
        config = self.config
        if hidden is None and not config.token_drop_ratio:
            return self.image_features(crops), []
        num_patches = math.prod(config.student_grid)
        arguments = {} if hidden is None else {"bool_masked_pos": hidden.flatten(1)}
        with ExitStack() as stack:
            if config.token_drop_ratio and self.training:
                dropped = dropped_tokens(self.student, num_patches, config.token_drop_ratio, shared_generator())
                stack.enter_context(dropped)
            outputs = self._run_student(crops, **arguments)
        features = pooled_features(lambda _: outputs, crops)
        if hidden is None:
            return features, []
        return features, [outputs.last_hidden_state[:, -num_patches:][hidden.flatten(1)]]


def _as_views(pixel_values: Tensor, name: str = "pixel_values") -> Tensor:
    """(B, V, 3, H, W), of which (B, 3, H, W) is the case V = 1."""
    views = pixel_values.unsqueeze(1) if pixel_values.dim() == 4 else pixel_values
    if views.dim() != 5:
        raise ValueError(f"{name} {tuple(pixel_values.shape)} must be (B, crops, 3, height, width).")
    return views


AutoConfig.register("rob", RoBConfig)
AutoModelForPreTraining.register(RoBConfig, RoBForPreTraining)
