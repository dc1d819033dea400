"""What segmentation and detection share: settings, samples on a canvas, stock backbones from a checkpoint."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoModel, PreTrainedConfig

from ..data import DistillationDataset, ImageSource, sample_generator
from ..data.fingerprint import rows_fingerprint
from ..students.features import feature_scales
from ..students.sparse_unet import SparseUNetBackbone, SparseUNetConfig
from .geometry import Placement
from .settings import DenseSettings
from .survey import Survey
from .task import Task

STRIDE = 32  # of the coarsest map of the usual encoders: the heads add maps up that must fit each other


@dataclass
class DenseTask(DenseSettings, Task):
    """A task whose targets lie in the image's plane."""

    default_target_column: ClassVar[str]

    def check(self) -> None:
        """Also refuse ranges that do not rise, and sides that the heads cannot take."""
        super().check()
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range is {self.scale_range}, but it must be a rising pair above 0.")
        sides = self.image_size
        if len(sides) not in (1, 2) or any(side < STRIDE or side % STRIDE for side in sides):
            raise ValueError(
                f"image_size is {sides}, but it must be one side, or height and width, each a multiple of {STRIDE}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the canvas."""
        return self.image_size[0], self.image_size[-1]

    @property
    def column(self) -> str:
        """The column of the targets."""
        return self.target_column or self.default_target_column

    @property
    def columns(self) -> dict[str, str | None]:
        """The masks may be images too; labels of whole images are not read."""
        return {"label_column": None, "target_column": self.column}

    def fingerprints(self) -> dict[str, str]:
        """Those of images and of targets."""
        source = self.source
        if isinstance(source.dataset.features[self.column], datasets.Image):
            masks = source.dataset.cast_column(self.column, datasets.Image(decode=False))
            targets = rows_fingerprint(masks, self.column, None, source.access)
        else:
            targets = rows_fingerprint(source.dataset, source.image_column, self.column, source.access)
        return super().fingerprints() | {"targets": targets}

    def class_names_of(self, source: ImageSource) -> Sequence[str] | None:
        """None: a column of classes of whole images does not name those of pixels."""
        return None

    @abstractmethod
    def survey(self, source: ImageSource) -> Survey:
        """What looks at the annotations of a split before it is used."""

    @abstractmethod
    def target_reader(self, source: ImageSource) -> Callable[[Any, Image.Image, str], Any]:
        """What decodes a row's target and checks it against its upright image; the text is what errors call the row.

        It raises `CorruptImageError` for a target that cannot be used, and the row is skipped.
        """

    @abstractmethod
    def train_sample(self, target: Any, place: Placement) -> dict[str, Any]:
        """`labels` of an image that was placed on the canvas."""

    @abstractmethod
    def eval_sample(self, target: Any, image: Image.Image) -> dict[str, Any]:
        """`labels` in the image's own pixels."""

    def samples(self, source: ImageSource, train: bool, seed: int, skipped_log: Path | None) -> Dataset:
        """Samples with `pixel_values` (3, H, W) and `labels`.

        Raises:
            ValueError: there is no column of targets, or a look at some hundred of them finds them unfit.
        """
        dataset = DenseDataset(self, source, train, seed, skipped_log)
        self.survey(source).run(dataset.rows, source, self.column, train)
        return dataset

    def pixels(self, image: Image.Image, place: Placement) -> Tensor:
        """(3, H, W) float32, normalised; 0 where the image is not."""
        mean, std = (torch.tensor(values) for values in self.normalisation)
        pixels = place.image(image, Image.Resampling.BILINEAR, mean)
        return (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Samples to a batch: numbers and equal tensors are stacked, everything else is listed."""
        batch = {}
        for key, first in samples[0].items():
            values = [sample[key] for sample in samples]
            if isinstance(first, int):
                values = torch.tensor(values)
            elif isinstance(first, Tensor) and all(value.shape == first.shape for value in values):
                values = torch.stack(values)
            batch[key] = values
        return batch


class DenseDataset(DistillationDataset):
    """An image and its target in one further column; rows of which either is unusable are skipped, counted and named.

    Raises:
        ValueError: there is no such column.
    """

    def __init__(self, task: DenseTask, source: ImageSource, train: bool, seed: int, skipped_log: Path | None):
        super().__init__(source, None, seed=seed, skipped_log=skipped_log)
        features, column = source.dataset.features, task.column
        if column not in features:
            raise ValueError(
                f"{source.name!r} has no column {column!r}: choose --target_column from {', '.join(features)}."
            )
        self.task, self.train, self.read_target = task, train, task.target_reader(source)
        self.rows = source.dataset.select_columns([source.image_column, column])
        if isinstance(features[column], datasets.Image):
            self.rows = self.rows.cast_column(column, datasets.Image(decode=False))

    def _decode(self, row: dict, index: int) -> tuple[Image.Image, Any]:
        name = f"row {index}"
        image = self.source.decode(row, name=name)  # whole: targets are in its pixels
        return image, self.read_target(row[self.task.column], image, name)

    def _sample(
        self, decoded: tuple[Image.Image, Any], row: dict, index: int, key: int, epoch: int, purpose: str = "view"
    ) -> dict:
        task, (image, target) = self.task, decoded
        if self.train:
            generator = sample_generator(self.seed, epoch, key, purpose)
            place = Placement.random(image, task.size, tuple(task.scale_range), task.flip_probability, generator)
            sample = task.train_sample(target, place)
        else:
            place = Placement.whole(image, task.size)
            sample = task.eval_sample(target, image)
        return {"pixel_values": task.pixels(image, place), **sample, "sample_index": index}


def backbone_config(config: PreTrainedConfig, min_stride: int = 1) -> PreTrainedConfig:
    """The config of a backbone with all maps from `min_stride` on.

    It is the student's own stock config where transformers has a backbone class for it, else a `SparseUNetConfig`
    around it, whose backbone takes any CNN (and needs this package to be loaded).
    """
    encoder_config = config.encoder_config if config.model_type == "sparse_unet" else config
    scales = [scale for scale in feature_scales(encoder_config) if scale.stride >= min_stride]
    fields = json.loads(encoder_config.to_json_string(use_diff=False))  # lists: some backbones fail on tuples
    if type(encoder_config) in MODEL_FOR_BACKBONE_MAPPING:
        backbone = type(encoder_config).from_dict(fields)
        wanted = [backbone.stage_names[scale.index] for scale in scales]
    else:
        backbone = SparseUNetConfig(encoder_config=fields)
        wanted = backbone.stage_names[-len(scales) :]
    backbone.set_output_features_output_indices(wanted, None)
    return backbone


def load_backbone_weights(backbone: nn.Module, model: str, revision: str | None) -> None:
    """Fill a stock backbone from the checkpoint of the plain model; its own further norms stay fresh.

    Raises:
        ValueError: the checkpoint lacks a weight of the model, or the backbone has others.
    """
    plain, loading = AutoModel.from_pretrained(
        model, revision=revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    plain = plain.encoder if plain.config.model_type == "sparse_unet" else plain
    target = backbone.sparse_unet.encoder if isinstance(backbone, SparseUNetBackbone) else backbone
    missing = target.load_state_dict(plain.state_dict(), strict=False).missing_keys
    parameters = dict(target.named_parameters())
    holes = {name for name in missing if name in parameters and parameters[name].dim() > 1} | loading["missing_keys"]
    if holes:
        raise ValueError(f"checkpoint {model!r} lacks {min(holes)} of the encoder (--model).")
