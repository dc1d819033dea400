"""A frozen image classifier as teacher: logits and the maps of chosen layers, in one forward."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import ModelOutput

from ..students.classifier_layers import logits_and_maps, student_layers
from .checkpoint import image_statistics, load_weights, resolve_revision
from .checks import check_channels
from .frozen import FrozenTeacher


@dataclass
class ClassifierTeacherOutput(ModelOutput):
    """What a classifier sees in a batch of images.

    Attributes:
        logits: (B, num_labels) float32.
        feature_maps: one (B, C, h, w) float32 map for each of the teacher's `layers`, in their order.
        class_token: None; see `PatchTeacherOutput`.
    """

    logits: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    class_token: Tensor | None = None


class ClassifierTeacher(FrozenTeacher):
    """A frozen stock image classifier, CNN or plain ViT, with its own normalisation; stays in eval mode.

    Beside `PatchTeacher`, which takes any ViT, this one has labels, and may be a CNN.

    Args:
        model: any `AutoModelForImageClassification`; taken over and frozen for good.
        layers: of `student_layers`: -1 is its `last_hidden_state`, which the classifier pools; i in 1..L is the output
            of the i-th block of a ViT, or the i-th scale of a CNN, finest first.
        image_size: pixels, int or (H, W), that it works at; default: the model config's, or the images' own.
        image_mean, image_std: its normalisation of RGB values in [0, 1].
        name_or_path, revision: where the weights came from.

    Attributes:
        num_labels: number of the classes that it answers in.
        class_names: the names of all classes of the model.
        hidden_sizes: C of each map.
        teacher_input: "full"; a classifier sees the whole image.
        classifies_regions: whether `classify` can be asked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] = (-1,),
        image_size: int | Sequence[int] | None = None,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        name_or_path: str | None = None,
        revision: str | None = None,
    ):
        super().__init__(model, image_mean, image_std, name_or_path, revision)
        known = student_layers(model.config)
        wrong = [layer for layer in layers if layer not in known]
        if wrong or not layers:
            raise ValueError(
                f"layers of teacher {name_or_path or type(model).__name__!r} must be -1 or 1 to {len(known) - 1}, not "
                f"{wrong[0] if wrong else tuple(layers)}."
            )
        self.layers, self._layers = tuple(layers), [known[layer] for layer in (*layers, -1)]
        self.num_labels = model.config.num_labels
        self.class_names = tuple(model.config.id2label[number] for number in range(self.num_labels))
        self._answers: list[int] | None = None  # which of the model's classes; None: all
        self.hidden_sizes = tuple(known[layer].channels for layer in layers)
        size = image_size or getattr(model.config, "image_size", None)
        self.image_size = (size, size) if isinstance(size, int) else size and tuple(size)
        base = {id(module) for module in model.base_model.modules()}
        self._heads = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in base]
        self.classifies_regions = self._probe()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        layers: Sequence[int] = (-1,),
        image_size: int | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> ClassifierTeacher:
        """Load a classifier from the Hub or a folder: safetensors only, without remote code, in `dtype`.

        Raises:
            ValueError: the checkpoint lacks weights, e.g. the classifier's, or takes no RGB images.
            OSError: the Hub's own error for a repository, revision or file that is not there.
        """
        name = os.fspath(name_or_path)
        revision = resolve_revision(name, revision, token, local_files_only)
        hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
        check_channels(AutoConfig.from_pretrained(name, trust_remote_code=False, **hub), name)
        model, loading = load_weights(AutoModelForImageClassification, name, dtype=dtype, **hub)
        if loading["missing_keys"]:
            raise ValueError(
                f"the classifier {name!r} would be partly random: its checkpoint lacks "
                f"{', '.join(sorted(loading['missing_keys'])[:3])}; choose one that was trained to classify."
            )
        mean, std = image_statistics(name, hub)
        return cls(model, layers, image_size, mean, std, name, revision)

    def answer_in(self, numbers: Sequence[int]) -> None:
        """Answer in these of `class_names`, in this order: their logits, whose softmax leaves out the others."""
        self._answers, self.num_labels = list(numbers), len(numbers)

    @torch.no_grad()
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> ClassifierTeacherOutput:
        """Classify images (B, 3, H, W), RGB in [0, 1], resized if need be; no mask is heeded."""
        logits, maps = self._run(images)
        return ClassifierTeacherOutput(logits, maps[:-1])

    def _run(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits, and the maps of `layers` and, last, the one that the classifier pools."""
        logits, maps = logits_and_maps(self.model, self.normalise(images, self.image_size), self._layers)
        return self._answer(logits.float()), tuple(m.float() for m in maps)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """What the classifier says of parts of its map: features (..., C) to logits (..., num_labels).

        Exact for CNNs: the mean over the whole map gives the image's logits. A ViT's classifier was trained on the
        class token, so that for patch tokens this is an extrapolation.
        """
        norm = getattr(self.model.base_model, "layernorm", None)  # ConvNeXt's, between pooling and classifier
        features = features.to(self.model.dtype)
        if norm is not None and not self._is_vit:
            features = norm(features)
        return self._answer(self._heads[0](features).float())

    def _answer(self, logits: Tensor) -> Tensor:
        return logits if self._answers is None else logits[..., self._answers]

    @torch.no_grad()
    def _probe(self) -> bool:
        """Whether the classifier is one linear layer on the pooled map, found by asking it."""
        height, width = self.image_size or (224, 224)
        gradient = torch.linspace(0, 1, 3 * height * width, device=self.image_mean.device)  # not blank, not random
        logits, maps = self._run(gradient.view(1, 3, height, width))
        pooled = maps[-1].mean((2, 3))
        self._is_vit = hasattr(self.model.config, "num_attention_heads") and hasattr(self.model.config, "patch_size")
        if len(self._heads) != 1 or self._heads[0].in_features != pooled.shape[1]:
            return False
        return self._is_vit or torch.allclose(self.classify(pooled), logits, rtol=1e-2, atol=1e-3)
