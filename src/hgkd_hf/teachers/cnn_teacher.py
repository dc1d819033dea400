"""Frozen CNNs as teachers: an image goes in, the feature maps of one stage come out."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..students.features import feature_scales, has_feature_scales
from .checkpoint import image_statistics, load_weights, resolve_revision
from .checks import check_channels, check_image_size, check_whole, is_vit
from .frozen import FrozenTeacher
from .named import teacher_source
from .patch_teacher import PatchTeacherOutput

FINAL_NORM = ("layernorm.", "layer_norm.", "pooler.")  # behind the maps: a checkpoint without a head may lack them


class CNNTeacher(FrozenTeacher):
    """A frozen CNN (ConvNeXt, DINOv3's ConvNeXt, ResNet, RegNet, ...) that returns maps of chosen scales; eval mode.

    What `PatchTeacher` is for vision transformers; a position of a map takes the place of a token.

    Args:
        model: any stock model with feature maps at several scales; taken over and frozen for good.
        layers: i in 1..L is the i-th of its `feature_scales`, finest first; -1 is the last. All of one stride, since
            all maps of a teacher have one grid.
        image_size: pixels, int or (H, W), that it works at, a multiple of that stride; default: the model config's.
        image_mean, image_std: its own normalisation of RGB values in [0, 1].
        name_or_path, revision: where the weights came from.

    Attributes:
        patch_size: pixels on a side of one position of the maps.
        grid: (rows, columns) of the maps.
        hidden_sizes: C of each map.
        teacher_input: "full"; a CNN sees the whole image.

    Raises:
        ValueError: the model gives no maps at several scales, or an argument does not go with it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] | None = (-1,),
        image_size: int | Sequence[int] | None = None,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        name_or_path: str | None = None,
        revision: str | None = None,
    ):
        super().__init__(model.base_model, image_mean, image_std, name_or_path, revision)
        self.layers = tuple(layers or (-1,))
        self.patch_size = stride_of(model.config, self.layers, name_or_path or type(model).__name__)
        scales = feature_scales(model.config)
        chosen = [scales[layer if layer < 0 else layer - 1] for layer in self.layers]
        self._states, self.hidden_sizes = [s.index for s in chosen], tuple(s.channels for s in chosen)
        size = image_size or getattr(model.config, "image_size", None)
        self.image_size = check_image_size(size, self.patch_size)
        self.grid = (self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        layers: Sequence[int] | None = (-1,),
        image_size: int | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> CNNTeacher:
        """Load a teacher of `TEACHERS`, the Hub or a folder, as `PatchTeacher.from_pretrained` does.

        Raises:
            ValueError: the checkpoint is no CNN, lacks weights, or an argument does not go with it.
            OSError: the Hub's own error for a repository, revision or file that is not there.
        """
        name, revision = teacher_source(os.fspath(name_or_path), revision)
        revision = resolve_revision(name, revision, token, local_files_only)
        hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        check_channels(config, name)
        stride_of(config, layers or (-1,), name)
        model, loading = load_weights(AutoModel, name, dtype=dtype, **hub)
        check_whole(model, (key for key in loading["missing_keys"] if not key.startswith(FINAL_NORM)), name)
        mean, std = image_statistics(name, hub)
        return cls(model, layers, image_size, mean, std, name, revision)

    @staticmethod
    def is_one(name_or_path: str | os.PathLike, *, revision: str | None = None) -> bool:
        """Whether a checkpoint is of a CNN with maps at several scales, from its config alone."""
        name, revision = teacher_source(os.fspath(name_or_path), revision)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        return not is_vit(config) and has_feature_scales(config)

    @staticmethod
    def patch_size_of(
        name_or_path: str | os.PathLike, layers: Sequence[int] = (-1,), *, revision: str | None = None
    ) -> int:
        """Pixels on a side of one position of the maps of these layers, from a checkpoint's config alone."""
        name, revision = teacher_source(os.fspath(name_or_path), revision)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        return stride_of(config, layers, name)

    @torch.no_grad()
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> PatchTeacherOutput:
        """Feature maps of images (B, 3, H, W), RGB in [0, 1], not normalised; resized if need be. No mask counts."""
        pixel_values = self.normalise(images, self.image_size)
        states = self.model(pixel_values, output_hidden_states=True).hidden_states
        maps = tuple(states[index].float().contiguous() for index in self._states)
        return PatchTeacherOutput(maps, maps[-1].mean(dim=(2, 3)), None)


def stride_of(config: PreTrainedConfig, layers: Sequence[int], name: str) -> int:
    """Pixels per position of the maps of these layers.

    Raises:
        ValueError: the model gives no maps at several scales, there is no such layer, or the layers differ in it.
    """
    scales = feature_scales(config)
    wrong = [layer for layer in layers if layer != -1 and layer not in range(1, len(scales) + 1)]
    if wrong:
        raise ValueError(
            f"layers of teacher {name!r} must be 1 to {len(scales)} (its maps, finest first) or -1 (the last), not "
            f"{wrong[0]}."
        )
    strides = {scales[layer if layer < 0 else layer - 1].stride for layer in layers}
    if len(strides) > 1:
        raise ValueError(
            f"layers {tuple(layers)} of teacher {name!r} have maps of strides {', '.join(map(str, sorted(strides)))}, "
            "but all must have one grid: choose one of them (--teacher_layers)."
        )
    return strides.pop()
