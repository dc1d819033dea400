"""From a dataset on the Hub or on disk to batches: load, decode, augment, mask, collate."""

from hgkd_hf.data.augment import ImageTransform, MultiCropTransform, sample_generator
from hgkd_hf.data.dataset import DistillationDataset, EvaluationDataset, StreamingDistillationDataset, collate
from hgkd_hf.data.decode import CorruptImageError, decode_image
from hgkd_hf.data.endless import EndlessStream
from hgkd_hf.data.load import ImageSource, class_names, load_images
from hgkd_hf.data.mixing import Mixing

__all__ = [
    "CorruptImageError",
    "DistillationDataset",
    "EndlessStream",
    "EvaluationDataset",
    "ImageSource",
    "ImageTransform",
    "Mixing",
    "MultiCropTransform",
    "StreamingDistillationDataset",
    "class_names",
    "collate",
    "decode_image",
    "load_images",
    "sample_generator",
]
