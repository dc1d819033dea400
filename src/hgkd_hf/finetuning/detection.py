"""Object detection: RT-DETR (arXiv 2304.08069) on the student as backbone."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessorPil, RTDetrModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.rt_detr.modeling_rt_detr import RTDetrMultiscaleDeformableAttention

from ..data import ImageSource, match_classes
from ..data.decode import CorruptImageError
from ..data.errors import listed
from ..students.features import feature_scales
from .boxes import BoxSurvey, category_names, class_numbers, misfitting, read_objects, to_corners
from .dense import DenseTask, backbone_config, load_backbone_weights
from .geometry import Placement
from .settings import ObjectDetectionSettings

logger = logging.getLogger(__name__)

NAMED_ROWS = 5  # rows that warnings name, in each process
FINEST_STRIDE = 8
PRIOR_SCORE = 0.01  # of every class before any training (arXiv 1708.02002, section 4.1): most queries hold no object
# Of a box that a random crop cuts, so much must remain; less is often not recognisable any more.
VISIBLE_SHARE = 0.3


@dataclass
class ObjectDetection(ObjectDetectionSettings, DenseTask):
    """Boxes with a class; a row's objects are `{"bbox": [[x, y, width, height], ...], "category": [...]}` or alike."""

    main_metric: ClassVar[str] = "ap"
    default_target_column: ClassVar[str] = "objects"
    _named = 0

    def check(self) -> None:
        """Also refuse missing libraries."""
        super().check()
        for library in ("scipy", *(("pycocotools",) if self.eval_split else ())):  # of the loss, of the evaluation
            if importlib.util.find_spec(library) is None:
                raise ValueError(f"object-detection needs {library}: pip install 'hgkd_hf[detection]'.")

    def build_model(self) -> PreTrainedModel:
        """`RTDetrForObjectDetection` with the student's maps of stride 8 and more.

        The backbone's BatchNorm is trained too: frozen statistics would keep a random backbone random.
        """
        config = self.model_config()
        encoder_config = config.encoder_config if config.model_type == "sparse_unet" else config
        scales = [scale for scale in feature_scales(encoder_config) if scale.stride >= FINEST_STRIDE]
        if len(scales) < 2:
            raise ValueError(f"model {self.model!r} gives fewer than two maps of stride 8 and more: choose another.")
        width = self.head_width
        model = RTDetrForObjectDetection(
            RTDetrConfig(
                backbone_config=backbone_config(config, FINEST_STRIDE),
                freeze_backbone_batch_norms=False,
                feat_strides=[scale.stride for scale in scales],
                encoder_in_channels=[scale.channels for scale in scales],
                encode_proj_layers=[len(scales) - 1],
                num_feature_levels=len(scales),
                decoder_in_channels=[width] * len(scales),
                encoder_hidden_dim=width,
                d_model=width,
                encoder_ffn_dim=4 * width,
                decoder_ffn_dim=4 * width,
                decoder_layers=self.decoder_layers,
                num_queries=self.num_queries,
                initializer_bias_prior_prob=PRIOR_SCORE,
                **self.label_maps,
            )
        )
        initialise_head(model)
        if self.has_weights:
            load_backbone_weights(self.encoder(model), self.model, self.model_revision)
        return model

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The pre-trained part of the model."""
        return model.model.backbone.model

    def image_processor(self) -> BaseImageProcessor:
        """What prepares images as the evaluation does, and turns outputs into boxes."""
        height, width = self.size
        mean, std = self.normalisation
        return RTDetrImageProcessorPil(
            size={"height": height, "width": width}, do_normalize=True, image_mean=mean, image_std=std
        )

    def class_names_of(self, source: ImageSource) -> Sequence[str] | None:
        """Those of the objects' categories; where these are strings, all of the split in alphabetical order."""
        feature = source.dataset.features.get(self.column)
        return None if feature is None else category_names(feature, source.dataset, self.column)

    def survey(self, source: ImageSource) -> BoxSurvey:
        """Compares boxes with their images."""
        return BoxSurvey(self.box_format, partial(self._read, classes=self.classes_of(source)))

    def target_reader(self, source: ImageSource) -> Callable[[Any, Image.Image, str], tuple[Tensor, Tensor]]:
        """`read_objects` with the classes as the split numbers them."""
        return partial(self.read_objects, classes=self.classes_of(source))

    def train_sample(self, target: tuple[Tensor, Tensor], place: Placement) -> dict[str, Any]:
        """`labels` as the model takes them: `class_labels` (N,), `boxes` (N, 4), centre and size in canvas sides."""
        boxes, classes = target
        placed = place.boxes(boxes)
        kept = areas(placed) >= VISIBLE_SHARE * areas(boxes) * place.rows.scale * place.columns.scale
        height, width = self.size
        placed = placed[kept] / torch.tensor([width, height, width, height])
        boxes = torch.cat([(placed[:, :2] + placed[:, 2:]) / 2, placed[:, 2:] - placed[:, :2]], 1)
        return {"labels": {"class_labels": classes[kept], "boxes": boxes}}

    def eval_sample(self, target: tuple[Tensor, Tensor], image: Image.Image) -> dict[str, Any]:
        """`labels`: `class_labels` (N,), `boxes` (N, 4) x1, y1, x2, y2 in the image's pixels, its `size` (h, w)."""
        boxes, classes = target
        size = torch.tensor([image.height, image.width])
        return {"labels": {"class_labels": classes, "boxes": boxes, "size": size}}

    def classes_of(self, source: ImageSource) -> dict[str, int]:
        """The model's class of each category of a split, in the order in which the split counts them.

        Raises:
            ValueError: the split has a category that is no class of the model.
        """
        own = self.class_names_of(source) or self.names
        where = f"split {source.split!r} of {source.name!r}"
        numbers = match_classes(own, self.names, where, "the model")
        if None in numbers:
            raise ValueError(
                f"{where} has the classes {listed(own)}, of which {own[numbers.index(None)]!r} is none of the model's "
                f"{listed(self.names)} (--class_names)."
            )
        return dict(zip(own, numbers))

    def read_objects(
        self, objects: Any, image: Image.Image, name: str, classes: dict[str, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A row's boxes (N, 4) float32, x1, y1, x2, y2 in pixels, clipped to the image, and classes (N,) int64.

        A box of which less than a pixel lies in the image is left out.

        Args:
            objects: in a form that `boxes.read_objects` knows.
            image: the upright image.
            name: what an error calls the row.
            classes: of `classes_of` the split; None: the task's names in their order.

        Raises:
            CorruptImageError: the row has another form, a box is no four finite numbers or has a negative side, or a
                category is no class.
        """
        boxes, classes = self._read(objects, name, classes)
        size = np.array([image.width, image.height])
        self._warn_of_misfits(boxes, size, name)
        corners = to_corners(boxes, self.box_format, size)
        if (corners[:, :2] > corners[:, 2:]).any():
            index = int((corners[:, :2] > corners[:, 2:]).any(1).argmax())
            raise CorruptImageError(
                f"{name}: the box {boxes[index].tolist()} has a negative side as --box_format {self.box_format}."
            )
        corners = torch.from_numpy(corners).float().clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2))
        kept = areas(corners) >= 1
        return corners[kept], torch.from_numpy(classes)[kept]

    def _warn_of_misfits(self, boxes: np.ndarray, size: np.ndarray, name: str) -> None:
        """Name the first rows whose boxes do not fit, for there are rows that no survey looked at."""
        misfits = misfitting(boxes, self.box_format, size)
        if misfits.any() and self._named < NAMED_ROWS:
            self._named += 1
            logger.warning(
                "%s: %d of %d boxes do not fit the image of %dx%d pixels as --box_format %s, the first is %s. They "
                "are clipped, and left out where less than a pixel remains%s.",
                *(name, misfits.sum(), len(boxes), *size, self.box_format, boxes[misfits][0].tolist()),
                "; further rows are not named" if self._named == NAMED_ROWS else "",
            )

    def _read(self, objects: Any, name: str, classes: dict[str, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) as stored, and the model's classes (N,) int64."""
        boxes, categories = read_objects(objects, name)
        classes = self.label_maps["label2id"] if classes is None else classes
        return boxes, class_numbers(categories, classes, name)

    def predict(self, model: PreTrainedModel, batch: dict[str, Any]) -> list[tuple[dict, dict]]:
        """(prediction, reference) of each image: `boxes` (N, 4) x1, y1, x2, y2 in pixels, `labels`, `scores`."""
        outputs = model(pixel_values=batch["pixel_values"])
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        sizes = torch.stack([labels["size"] for labels in batch["labels"]])
        found = self.image_processor().post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        pairs = []
        for prediction, labels in zip(found, batch["labels"]):
            reference = {"boxes": labels["boxes"], "labels": labels["class_labels"]}
            pairs.append(tuple({name: x.cpu() for name, x in part.items()} for part in (prediction, reference)))
        return pairs

    def score(self, pairs: list[tuple[dict, dict]]) -> dict[str, float]:
        """COCO's average precision, its parts, and that of each class."""
        from ..evaluation.detection import AveragePrecision

        predictions, references = zip(*pairs)
        metric = AveragePrecision(len(self.names), keep_in_memory=True)
        result = metric.compute(predictions=predictions, references=references)
        per_class = dict(zip(self.names, result.pop("per_class_ap")))
        return result | {f"ap_{name}": value for name, value in per_class.items()}


@torch.no_grad()
def initialise_head(model: RTDetrForObjectDetection) -> None:
    """Draw everything behind the backbone anew, from PyTorch's own initial distributions.

    transformers draws the scales of BatchNorm and all weights from N(0, 0.01), which only a checkpoint makes good:
    from there hundreds of steps are spent on making the maps large enough to be read (docs/results.md, "Detection").
    What RT-DETR has of its own stays as transformers has it: `initializer_bias_prior_prob`, last layers of boxes that
    are zero, and the offsets of sampling (Deformable DETR, arXiv 2010.04159).

    Args:
        model: changed in place; its backbone keeps its weights.
    """
    backbone = set(model.model.backbone.modules())
    for module in model.modules():
        if module not in backbone and isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    for module in model.modules():  # on top, what is RT-DETR's own: priors of scores, offsets of sampling
        if isinstance(module, RTDetrForObjectDetection | RTDetrModel | RTDetrMultiscaleDeformableAttention):
            model._init_weights(module)


def areas(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4) x1, y1, x2, y2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
