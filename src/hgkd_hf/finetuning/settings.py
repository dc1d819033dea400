"""The settings of fine-tuning: of its trainer, and of each task; without torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..methods.base.command_settings import DatasetSettings
from ..methods.base.settings import setting
from ..students.presets import PRESETS
from ..training.settings import TrainingSettings

NORMALISED = "-normalised"
BoxFormat = Literal["xywh", "xyxy", "cxcywh", "xywh-normalised", "xyxy-normalised", "cxcywh-normalised"]
BOX_FORMATS = get_args(BoxFormat)


@dataclass
class FineTuningSettings(TrainingSettings):
    """What fine-tuning adds to the settings of a training, and its other defaults; learning rates scale as there."""

    layer_decay: float | None = setting(
        None,
        "Learning rate of each coarser-to-finer scale of the encoder, times this; default: 1, for segmentation "
        "with a trained encoder 0.7.",
        above=0,
        maximum=1,
    )
    ema_decay: float | None = setting(
        None, "Evaluate and keep the moving average of the weights with this decay.", minimum=0, below=1
    )
    early_stopping_patience: int | None = setting(
        None,
        "Stop after so many evaluations without a better metric, and keep the best model (--load_best_model_at_end); "
        "needs --eval_strategy and the same --save_strategy.",
        minimum=1,
    )
    base_learning_rate: float = setting(
        1e-3, "Learning rate for 256 images a step; grows with the root of their number."
    )
    output_dir: str = setting("runs/finetuning", "The run's folder.")
    adam_beta2: float = setting(0.999, "Decay of AdamW's second moment.")
    # Labels are there: nothing is evaluated by neighbours.
    knn_k: int = field(default=20, init=False)
    knn_temperature: float = field(default=0.07, init=False)


@dataclass
class TaskSettings(DatasetSettings):
    """What is fine-tuned for what, on which images."""

    model: str = setting(
        help="Folder or Hub id of the pre-trained model (a run's student/, or student/sparse_unet to keep the decoder "
        f"in segmentation); random weights: a config as JSON, or one of {', '.join(PRESETS)}."
    )
    task: str = setting("image-classification", "image-classification | semantic-segmentation | object-detection.")
    model_revision: str | None = setting(None, "Branch, tag or commit of the model.")
    eval_split: str | None = setting(None, "Split to evaluate on; none: no evaluation.")
    max_samples: int | None = setting(None, "Train on at most so many images, drawn once for all seeds.", minimum=1)
    max_eval_samples: int | None = setting(None, "Evaluate on at most so many images.", minimum=1)
    target_column: str | None = setting(None, "Column of the labels, masks or objects.")
    class_names: list[str] | None = setting(
        None, "Names of the classes by integer, where the dataset does not name them."
    )
    flip_probability: float = setting(0.5, "Of a horizontal flip in training.", minimum=0, maximum=1)
    drop_path_rate: float = setting(0.0, "Stochastic depth, of models that have it.", minimum=0, below=1)
    resume: bool = setting(False, "Resume from the last checkpoint in --output_dir.")


@dataclass
class ImageClassificationSettings(TaskSettings):
    """Crops and their labels."""

    image_size: int = setting(224, "Pixels of the side of the crops.", minimum=1)
    crop_scale: list[float] = setting([0.25, 1.0], "Share of the area cropped in training.")
    crop_fraction: float = setting(
        1.0, "Share of the resized image that an evaluation crop keeps.", above=0, maximum=1
    )
    color_jitter: float = setting(0.0, "Change of brightness, contrast and saturation.", minimum=0, maximum=1)
    mixup: float = setting(0.0, "Alpha of mixup; 0 = none.", minimum=0)
    cutmix: float = setting(0.0, "Alpha of cutmix; 0 = none.", minimum=0)
    label_smoothing: float = setting(0.0, "Share of a label spread over all classes.", minimum=0, below=1)


@dataclass
class DenseSettings(TaskSettings):
    """Images on a canvas, for tasks that predict places."""

    image_size: list[int] = setting([512], "Pixels of the canvas: one side, or height and width, multiples of 32.")
    scale_range: list[float] = setting([0.5, 2.0], "Multiples of the canvas at which training images are laid on it.")
    head_width: int = setting(256, "Channels of the head.", minimum=1)


@dataclass
class SemanticSegmentationSettings(DenseSettings):
    """Masks, and the decoder."""

    ignore_index: int = setting(255, "Value of mask pixels that do not count.")
    mask_values: list[int] | None = setting(
        None, "Pixel values of the classes in the order of --class_names, where they are not 0, 1, 2, ..."
    )
    decoder_stride: int = setting(4, "Pixels per position where a kept decoder ends and the classifier begins.")


@dataclass
class ObjectDetectionSettings(DenseSettings):
    """Boxes, and the detector."""

    box_format: BoxFormat = setting(
        "xywh",
        "Of the stored boxes: x, y, width, height; corners; or centre and size; in pixels, or as shares of the "
        f"image's sides: {', '.join(BOX_FORMATS)}.",
    )
    num_queries: int = setting(300, "Most boxes that an image can get.", minimum=1)
    decoder_layers: int = setting(6, "Of the detector's decoder.", minimum=1)


SETTINGS: dict[str, type[TaskSettings]] = {
    "image-classification": ImageClassificationSettings,
    "semantic-segmentation": SemanticSegmentationSettings,
    "object-detection": ObjectDetectionSettings,
}
