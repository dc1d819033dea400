"""Object detection: RT-DETR (arXiv 2304.08069) on the student as backbone."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from ..data import ImageSource
from ..students.features import feature_scales
from .dense import DenseTask, backbone_config, load_backbone_weights
from .geometry import Placement

FINEST_STRIDE = 8
# Of a box that a random crop cuts, so much must remain; less is often not recognisable any more.
VISIBLE_SHARE = 0.3


@dataclass
class ObjectDetection(DenseTask):
    """Boxes with a class; a row's objects are `{"bbox": [[x, y, width, height], ...], "category": [...]}`."""

    main_metric: ClassVar[str] = "ap"
    default_target_column: ClassVar[str] = "objects"

    num_queries: int = field(default=300, metadata={"help": "Most boxes that an image can get."})
    decoder_layers: int = field(default=6, metadata={"help": "Of the detector's decoder."})

    def __post_init__(self):
        super().__post_init__()
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
                **self.label_maps,
            )
        )
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
        """Those of the objects' `category`."""
        objects = source.dataset.features.get(self.target_column or self.default_target_column)
        category = objects.get("category") if isinstance(objects, dict) else None
        return getattr(getattr(category, "feature", None), "names", None)

    def train_sample(self, image: Image.Image, target: Any, place: Placement, name: str) -> dict[str, Any]:
        """`labels` as the model takes them: `class_labels` (N,), `boxes` (N, 4), centre and size in canvas sides."""
        boxes, classes = self.read_objects(target, image, name)
        placed = place.boxes(boxes)
        kept = areas(placed) >= VISIBLE_SHARE * areas(boxes) * place.rows.scale * place.columns.scale
        height, width = self.size
        placed = placed[kept] / torch.tensor([width, height, width, height])
        boxes = torch.cat([(placed[:, :2] + placed[:, 2:]) / 2, placed[:, 2:] - placed[:, :2]], 1)
        return {"labels": {"class_labels": classes[kept], "boxes": boxes}}

    def eval_sample(self, image: Image.Image, target: Any, name: str) -> dict[str, Any]:
        """`labels`: `class_labels` (N,), `boxes` (N, 4) x1, y1, x2, y2 in the image's pixels, its `size` (h, w)."""
        boxes, classes = self.read_objects(target, image, name)
        size = torch.tensor([image.height, image.width])
        return {"labels": {"class_labels": classes, "boxes": boxes, "size": size}}

    def read_objects(self, objects: Any, image: Image.Image, name: str) -> tuple[Tensor, Tensor]:
        """A row's boxes (N, 4), x1, y1, x2, y2 in pixels, clipped to the image, and classes (N,).

        A box of which less than a pixel lies in the image is left out.

        Raises:
            ValueError: the row has another form, a box is no four finite numbers, or a class has no name.
        """
        if not isinstance(objects, dict) or not {"bbox", "category"} <= objects.keys():
            raise ValueError(f"{name}: objects must be {{'bbox': [...], 'category': [...]}} (--target_column).")
        if len(objects["bbox"]) != len(objects["category"]):
            raise ValueError(f"{name} has {len(objects['bbox'])} boxes, but {len(objects['category'])} categories.")
        classes = torch.tensor(objects["category"], dtype=torch.int64)
        if len(classes) == 0:
            return torch.zeros(0, 4), classes
        boxes = torch.tensor(objects["bbox"], dtype=torch.float32)
        if boxes.shape[1] != 4 or not boxes.isfinite().all() or (boxes[:, 2:] < 0).any():
            raise ValueError(f"{name}: boxes must be finite x, y, width, height in pixels, none below 0 in size.")
        if classes.min() < 0 or classes.max() >= len(self.names):
            raise ValueError(
                f"{name}: categories go from {classes.min()} to {classes.max()}, but there are "
                f"{len(self.names)} classes: name more --class_names."
            )
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        limit = torch.tensor([image.width, image.height] * 2)
        corners = corners.clamp(min=0).minimum(limit)
        kept = areas(corners) >= 1
        return corners[kept], classes[kept]

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


def areas(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4) x1, y1, x2, y2."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
