"""From a dataset on the Hub or on disk to batches: load, decode, augment, mask, collate."""

from hgkd_hf.data.augment import ImageTransform, MultiCropTransform, sample_generator
from hgkd_hf.data.bank import bank_and_queries, shared_images
from hgkd_hf.data.cached import CachedTeacherDataset, TeacherViews
from hgkd_hf.data.dataset import DistillationDataset, EvaluationDataset, ImageLoader, collate, model_inputs
from hgkd_hf.data.decode import CorruptImageError, decode_image
from hgkd_hf.data.errors import Flags
from hgkd_hf.data.labels import align_classes, class_names, labelled, match_classes
from hgkd_hf.data.load import load_images, open_split
from hgkd_hf.data.mixing import Mixing
from hgkd_hf.data.source import ImageSource
from hgkd_hf.data.streaming import EndlessStream, StreamingDistillationDataset

__all__ = [
    "CachedTeacherDataset",
    "CorruptImageError",
    "DistillationDataset",
    "EndlessStream",
    "EvaluationDataset",
    "Flags",
    "ImageLoader",
    "ImageSource",
    "ImageTransform",
    "Mixing",
    "MultiCropTransform",
    "StreamingDistillationDataset",
    "TeacherViews",
    "align_classes",
    "bank_and_queries",
    "class_names",
    "collate",
    "decode_image",
    "labelled",
    "load_images",
    "match_classes",
    "model_inputs",
    "open_split",
    "sample_generator",
    "shared_images",
]
