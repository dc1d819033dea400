"""Checkpoints whose frozen features are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModel

from ..data import EvaluationDataset, ImageSource, ImageTransform
from ..students.features import feature_scales, has_feature_scales
from ..students.sparse_unet import SparseUNetModel
from ..teachers import PatchTeacher
from ..teachers.showing import show
from .features import Features
from .linear_segmentation import MapsOf
from .protocols import best_device
from .shares import share_features


def load_frozen_model(name: str, revision: str | None = None) -> nn.Module:
    """The model whose pooled output is evaluated, in eval mode; for a whole student, its encoder.

    Args:
        name: folder or Hub id of any transformers checkpoint that gives features of images.
        revision: of the Hub id.

    Raises:
        ValueError: the checkpoint lacks weights that the features depend on.
    """
    model = _load_whole(name, revision)
    return model.encoder if isinstance(model, SparseUNetModel) else model


def _load_whole(name: str, revision: str | None) -> nn.Module:
    model, loading = AutoModel.from_pretrained(
        name, revision=revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    missing = {key for key in loading["missing_keys"] if not key.startswith("pooler.")}
    if missing:
        raise ValueError(f"checkpoint {name!r} lacks {min(missing)}: its features would be random (--model).")
    if missing != set(loading["missing_keys"]):
        model.pooler = None  # a random layer above the class token: pooled_features takes the mean of the tokens
    return getattr(model, "vision_model", model).eval()


FINEST_STRIDE = 4  # of maps that are probed: finer ones, which few CNNs have, hold colours and edges


def load_maps(
    name: str,
    revision: str | None,
    image_size: tuple[int, int],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> MapsOf:
    """A frozen checkpoint as a function from normalised images (B, 3, H, W) to maps (B, C, h, w), finest first.

    A CNN gives its maps of all scales from stride 4 on; a whole student also its decoder's, unless that is finer; a
    ViT that of its final patch tokens.

    Args:
        name: folder or Hub id.
        revision: of the Hub id.
        image_size: (H, W) in pixels. A ViT's images are resized to the multiples of its patch size that are nearest.
        image_mean, image_std: of the images.

    Raises:
        ValueError: the checkpoint lacks weights that the features depend on, or the model gives no maps.
    """
    model = _load_whole(name, revision).to(best_device())
    if isinstance(model, SparseUNetModel):
        return partial(_student_maps, model)
    if has_feature_scales(model.config):
        scales = [scale for scale in feature_scales(model.config) if scale.stride >= FINEST_STRIDE]

        def maps_of(images: Tensor) -> list[Tensor]:
            states = model(images, output_hidden_states=True).hidden_states
            return [states[scale.index] for scale in scales]

        return maps_of
    patch = PatchTeacher.patch_size_of(name, revision=revision)
    size = tuple(max(1, round(side / patch)) * patch for side in image_size)
    vit = PatchTeacher.from_pretrained(name, revision=revision, layers=(-1,), image_size=size).to(best_device())
    return lambda images: show(vit, images, image_mean, image_std).feature_maps


def _student_maps(student: SparseUNetModel, images: Tensor) -> list[Tensor]:
    outputs = student(images, output_hidden_states=True)
    scales = zip((scale.stride for scale in student.scales), outputs.feature_maps)
    decoded = () if student.decoder is None else ((student.config.decoder_stride, outputs.last_hidden_state),)
    maps = [*scales, *decoded]
    return [map_ for stride, map_ in sorted(maps, key=lambda found: found[0]) if stride >= FINEST_STRIDE]


def teacher_features(
    name: str,
    layers: Sequence[int],
    source: ImageSource,
    transform: ImageTransform,
    batch_size: int = 128,
    num_workers: int = 0,
    revision: str | None = None,
) -> list[Features]:
    """The mean patch features of each of a ViT's layers for a labelled split; processes get those of their shares.

    Args:
        name: folder or Hub id of the ViT.
        layers: -1 for its final output, i for block i, 0 for the mean of the upper half.
        source: the split.
        transform: of the student that it is compared with. Its images are resized to the multiple of the patch size
            that is nearest.
        batch_size, num_workers: of the loader.
        revision: of the Hub id.

    Raises:
        ValueError: the checkpoint is no ViT, or has no such layer.
    """
    patch = PatchTeacher.patch_size_of(name, revision=revision)
    side = max(1, round(transform.size[0] / patch)) * patch
    teacher = PatchTeacher.from_pretrained(name, revision=revision, layers=layers, image_size=side)

    def see(pixel_values: Tensor) -> Tensor:
        maps = show(teacher, pixel_values, transform.image_mean, transform.image_std).feature_maps
        return torch.cat([feature_map.mean((2, 3)) for feature_map in maps], 1)

    dataset = EvaluationDataset(source, transform)
    found = share_features(see, dataset, batch_size, best_device(), num_workers=num_workers)
    parts = found.features.split(teacher.hidden_sizes, 1)
    return [replace(found, features=part.contiguous()) for part in parts]
