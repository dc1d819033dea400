"""From a dataset on the Hub or on disk to batches: load, decode, augment, mask, collate."""

from hgkd_hf.data.augment import ImageTransform, sample_generator
from hgkd_hf.data.dataset import DistillationDataset, EvaluationDataset, StreamingDistillationDataset, collate
from hgkd_hf.data.decode import CorruptImageError, decode_image
from hgkd_hf.data.load import ImageSource, load_images

__all__ = [
    "CorruptImageError",
    "DistillationDataset",
    "EvaluationDataset",
    "ImageSource",
    "ImageTransform",
    "StreamingDistillationDataset",
    "collate",
    "decode_image",
    "load_images",
    "sample_generator",
]
