"""The settings of fine-tuning: of its trainer, and of each task; without torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..students.presets import PRESETS
from ..training.settings import TrainingSettings

NORMALISED = "-normalised"
BOX_FORMATS = tuple(f"{order}{unit}" for unit in ("", NORMALISED) for order in ("xywh", "xyxy", "cxcywh"))


@dataclass
class FineTuningSettings(TrainingSettings):
    """What fine-tuning adds to the settings of a training, and its other defaults; learning rates scale as there."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of each coarser-to-finer scale of the encoder, times this."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Evaluate and keep the moving average of the weights with this decay."}
    )
    base_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate for 256 images a step; grows with the root of their number."}
    )
    output_dir: str = field(default="runs/finetuning", metadata={"help": "The run's folder."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Decay of AdamW's second moment."})
    # Labels are there: nothing is evaluated by neighbours.
    knn_k: int = field(default=20, init=False)
    knn_temperature: float = field(default=0.07, init=False)


@dataclass
class TaskSettings:
    """What is fine-tuned for what, on which images."""

    dataset: str = field(metadata={"help": "Hub id or path: a folder of images, of parquet files, a saved dataset."})
    model: str = field(
        metadata={
            "help": "Folder or Hub id of the pre-trained model (a run's student/, or student/sparse_unet to keep the "
            f"decoder in segmentation); random weights: a config as JSON, or one of {', '.join(PRESETS)}."
        }
    )
    task: str = field(
        default="image-classification",
        metadata={"help": "image-classification | semantic-segmentation | object-detection."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none: no evaluation."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Train on at most so many images, drawn once for all seeds."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on at most so many images."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    allow_remote_images: bool = field(
        default=False, metadata={"help": "Open images that rows name by a URL or by a path outside of the dataset."}
    )
    target_column: str | None = field(default=None, metadata={"help": "Column of the labels, masks or objects."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes by integer, where the dataset does not name them."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip in training."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of models that have it."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


@dataclass
class ImageClassificationSettings(TaskSettings):
    """Crops and their labels."""

    image_size: int = field(default=224, metadata={"help": "Pixels of the side of the crops."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Share of the area cropped in training."}
    )
    crop_fraction: float = field(
        default=1.0, metadata={"help": "Share of the resized image that an evaluation crop keeps."}
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Change of brightness, contrast and saturation."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup; 0 = none."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix; 0 = none."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of a label spread over all classes."})


@dataclass
class DenseSettings(TaskSettings):
    """Images on a canvas, for tasks that predict places."""

    image_size: list[int] = field(
        default_factory=lambda: [512],
        metadata={"help": "Pixels of the canvas: one side, or height and width, multiples of 32."},
    )
    scale_range: list[float] = field(
        default_factory=lambda: [0.5, 2.0],
        metadata={"help": "Multiples of the canvas at which training images are laid on it."},
    )
    head_width: int = field(default=256, metadata={"help": "Channels of the head."})


@dataclass
class SemanticSegmentationSettings(DenseSettings):
    """Masks, and the decoder."""

    ignore_index: int = field(default=255, metadata={"help": "Value of mask pixels that do not count."})
    mask_values: list[int] | None = field(
        default=None,
        metadata={
            "help": "Pixel values of the classes in the order of --class_names, where they are not 0, 1, 2, ..."
        },
    )
    decoder_stride: int = field(
        default=4, metadata={"help": "Pixels per position where a kept decoder ends and the classifier begins."}
    )


@dataclass
class ObjectDetectionSettings(DenseSettings):
    """Boxes, and the detector."""

    box_format: str = field(
        default="xywh",
        metadata={
            "help": "Of the stored boxes: x, y, width, height; corners; or centre and size; in pixels, or as "
            f"shares of the image's sides: {', '.join(BOX_FORMATS)}."
        },
    )
    num_queries: int = field(default=300, metadata={"help": "Most boxes that an image can get."})
    decoder_layers: int = field(default=6, metadata={"help": "Of the detector's decoder."})


SETTINGS: dict[str, type[TaskSettings]] = {
    "image-classification": ImageClassificationSettings,
    "semantic-segmentation": SemanticSegmentationSettings,
    "object-detection": ObjectDetectionSettings,
}
