"""TinyMIM: the student's tokens relate to each other as those of one block of a frozen ViT do (2301.01296).

Relations and loss are the paper's. Its student's last block has the teacher's number of heads; ours is a stock model,
which has one number for all blocks, or is a CNN: a block with the teacher's heads stands on top, and is not exported.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel
from transformers.utils import ModelOutput

from ...objectives.token_relations import AdaptiveBlock, relation_losses, split_heads
from ...students.classifier_layers import student_layers
from ...students.features import freeze_mask_token, pooled_features
from ...teachers import PatchTeacher
from ..base.distiller import Distiller, DistillerConfig
from ..base.image_classification import resize_map
from .settings import TinyMIMSettings

PROJECTIONS = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}  # as stock models name them


class TinyMIMConfig(TinyMIMSettings, DistillerConfig):
    """Configuration of `TinyMIMForPreTraining`: those of `DistillerConfig` and `TinyMIMSettings`, and these.

    The student is any `AutoModel` for images, a plain ViT or a CNN with maps at several scales.

    Args:
        teacher_hidden_size, teacher_num_heads: of the teacher's attention.
        teacher_grid: (rows, columns) of its patch tokens, to which the student's are resized where they differ.
    """

    model_type = "tinymim"

    teacher_hidden_size: int | None = None
    teacher_num_heads: int | None = None
    teacher_grid: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        student_layers(self.student_config)  # refuses a student that gives neither maps nor patch tokens

    @classmethod
    def fields_of_teacher(cls, teacher: PatchTeacher) -> dict[str, Any]:
        """With its width, heads and tokens.

        Raises:
            ValueError: several layers, or a hierarchical model, whose attention sees windows.
        """
        heads = getattr(teacher.config, "num_attention_heads", None)
        if not isinstance(heads, int) or len(teacher.layers) != 1:
            raise ValueError(
                f"TinyMIM needs one block of a plain vision transformer, but the teacher is a "
                f"{teacher.config.model_type} model with the layers {tuple(teacher.layers)} (--teacher_layers)."
            )
        return super().fields_of_teacher(teacher) | {
            "teacher_hidden_size": attention_projections(teacher.model)["q"].out_features,
            "teacher_num_heads": heads,
            "teacher_grid": list(teacher.grid),
        }


@dataclass
class TinyMIMOutput(ModelOutput):
    """Output of `TinyMIMForPreTraining`: `loss`, the sum of the KL of each relation; None for those not compared."""

    loss: Tensor | None = None
    qk: Tensor | None = None
    vv: Tensor | None = None
    qq: Tensor | None = None
    kk: Tensor | None = None


class TinyMIMForPreTraining(Distiller):
    """Student, adaptive block and, attached from outside, a teacher.

    Example:
        >>> teacher = PatchTeacher.from_pretrained("facebook/vit-mae-large", layers=(18,))
        >>> model = TinyMIMForPreTraining(TinyMIMConfig.for_teacher(teacher, ViTConfig())).attach_teacher(teacher)
        >>> model(pixel_values).loss.backward()
    """

    config_class = TinyMIMConfig

    def __init__(self, config: TinyMIMConfig):
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise ValueError("no teacher_hidden_size is known: build the config with TinyMIMConfig.for_teacher(...).")
        self.layer = student_layers(config.student_config)[-1]
        self.student = AutoModel.from_config(config.student_config)
        freeze_mask_token(self.student)
        self.adaptive_block = AdaptiveBlock(self.layer.channels, config.teacher_hidden_size, config.teacher_num_heads)
        self.post_init()

    def check_teacher(self, teacher: PatchTeacher) -> None:
        """Raise `ValueError` if `teacher` has other heads or tokens than this model was built for."""
        given, built = self.config.fields_of_teacher(teacher), self.config.to_dict()
        for name in ("teacher_hidden_size", "teacher_num_heads", "teacher_grid"):
            if given[name] != built[name]:
                raise ValueError(f"the teacher's {name} is {given[name]}, but this model was built for {built[name]}.")

    @property
    def encoder(self) -> PreTrainedModel:
        """The student."""
        return self.student

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), for kNN and probes."""
        return pooled_features(self.student, pixel_values)

    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers model; a copy, in eval mode."""
        return copy.deepcopy(self.student).eval()

    def forward(self, pixel_values: Tensor, **kwargs) -> TinyMIMOutput:
        """Compare how tokens relate: one for the whole image, which pooling gives, and one for every patch.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.

        Raises:
            RuntimeError: no teacher is attached.
        """
        target = self._teacher_attention(pixel_values)
        student = self.adaptive_block(self._student_tokens(pixel_values))
        with torch.autocast(pixel_values.device.type, enabled=False):
            losses = relation_losses(student, target, self.config.relations.split("+"))
        return TinyMIMOutput(loss=sum(losses.values()), **losses)

    def _student_tokens(self, pixel_values: Tensor) -> Tensor:
        """(B, 1 + N, C): the pooled feature, and the patches on the teacher's grid."""
        outputs = self.student(pixel_values)
        state = outputs.last_hidden_state
        if state.dim() == 3:  # special tokens stand before the patches
            rows, columns = (side // self.layer.stride for side in pixel_values.shape[-2:])
            state = state[:, -rows * columns :].mT.unflatten(2, (rows, columns))
        patches = resize_map(state, self.config.teacher_grid).flatten(2).mT
        pooled = pooled_features(lambda _: outputs, pixel_values).float()
        return torch.cat([pooled.unsqueeze(1), patches], 1)

    def _teacher_attention(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """`q`, `k` and `v` (B, heads, 1 + N, d): of the class token, else the mean, and of the patches."""
        outputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, module in attention_projections(self.teacher.model).items() if self.teacher else ():
                hooks.enter_context(module.register_forward_hook(partial(_keep, outputs, name)))
            self.teach(pixel_values)
        (rows, columns), attention = self.config.teacher_grid, {}
        for name, tokens in outputs.items():
            patches = tokens[:, -rows * columns :]
            image = tokens[:, :1] if tokens.shape[1] > rows * columns else patches.mean(1, keepdim=True)
            attention[name] = split_heads(torch.cat([image, patches], 1), self.config.teacher_num_heads)
        return attention

    def describe_objective(self) -> dict[str, str]:
        """Relations, block and heads."""
        block, heads = self.config.teacher_layers[0], self.config.teacher_num_heads
        return {"objective": f"relations {self.config.relations} of the teacher's block {block}, {heads} heads"}


def _keep(outputs: dict[str, Tensor], name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
    outputs[name] = output


def attention_projections(model: nn.Module) -> dict[str, nn.Linear]:
    """The projections to queries, keys and values, `q`, `k` and `v`, in the last block of a stock ViT.

    Raises:
        ValueError: it has none of their own, e.g. one for all three.
    """
    layers = [(name.rpartition(".")[2], m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = {key: [m for name, m in layers if name in names][-1:] for key, names in PROJECTIONS.items()}
    if not all(found.values()):
        raise ValueError(
            f"{type(model).__name__} has no projections to queries, keys and values: choose a plain vision "
            "transformer, e.g. vit, deit, dinov2 or clip (--teacher)."
        )
    return {key: module for key, (module,) in found.items()}


AutoConfig.register("tinymim", TinyMIMConfig)
AutoModelForPreTraining.register(TinyMIMConfig, TinyMIMForPreTraining)
