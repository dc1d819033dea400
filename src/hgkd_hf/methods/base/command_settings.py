"""The settings that a command has beside the method's own: teacher, student, images, evaluation.

Nothing here, nor in the `settings.py` of a method, imports torch: `--help` is answered from these files alone.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ...students.presets import PRESETS
from .settings import LabelledSettings, MethodSettings, Settings, as_list, setting


@dataclass
class DatasetSettings(Settings):
    """Which images a command reads. Values out of their limits are refused (`ValueError`)."""

    dataset: str = setting(help="Hub id or path: a folder of images, of parquet files, a saved dataset.")
    _: KW_ONLY  # so that commands may add settings that must be given
    dataset_config: str | None = setting(None, "Configuration of the dataset.")
    dataset_revision: str | None = setting(None, "Branch, tag or commit of the dataset.")
    split: str = setting("train", "Split of the dataset.")
    image_column: str | None = setting(None, "Needed where several columns hold images.")
    allow_remote_images: bool = setting(
        False, "Open images that rows name by a URL or by a path outside of the dataset."
    )

    def __post_init__(self) -> None:
        self.settle()
        self.check()


@dataclass(kw_only=True)
class FrozenFeatures(DatasetSettings):
    """Which frozen model gives features of which images: what `hgkd evaluate` and `hgkd embed` have in common."""

    model: str = setting(help="Folder or Hub id: a run's student/, student/sparse_unet/, any other model.")
    model_revision: str | None = setting(None, "Branch, tag or commit of the model.")
    label_column: str | None = setting(None, "Needed where it is not plain.")
    batch_size: int = setting(128, "Images at a time.", minimum=1)
    num_workers: int = setting(0, "Processes that read images.", minimum=0)


_LAYERS = "Target layers: -1 = final output, i = block i, 0 = mean of the upper half of the blocks."
_FITTING = f"{_LAYERS} Default: 0; of a CNN or a hierarchical ViT -1; of a MAE's decoder its middle block."


@dataclass
class TaughtImages(DatasetSettings):
    """Which teacher sees which crops of which images: what `hgkd distill` and `hgkd teach` have in common."""

    teacher: list[str] | str | None = setting(
        None,
        "A name (`hgkd teachers` lists them), Hub id or folder; several for methods that take them.",
        several=True,
    )
    teacher_revision: list[str] | str | None = setting(
        None, "Branch, tag or commit of the teacher; of several one for each.", several=True
    )
    teacher_layers: list[int] | None = setting(None, _FITTING)
    teacher_image_size: int | None = setting(None, "Pixels; default: what fits.", minimum=1)
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Precision of the teacher.")

    image_size: int = setting(224, "Pixels of the crops.", minimum=1)
    crop_scale: list[float] = setting([0.67, 1.0], "Share of the area cropped.")
    flip_probability: float = setting(0.5, "Of a horizontal flip.", minimum=0, maximum=1)
    max_samples: int | None = setting(None, "Use at most so many images.", minimum=1)

    def check(self) -> None:
        """Also refuse revisions that are not one for each teacher."""
        super().check()
        teachers, revisions = as_list(self.teacher), as_list(self.teacher_revision)
        if revisions and len(revisions) != max(1, len(teachers)):
            raise ValueError(
                f"teacher_revision names {len(revisions)} revision(s), but --teacher {len(teachers)} teacher(s): give "
                "one for each ('main' where no other is wanted), or leave --teacher_revision out."
            )


@dataclass
class CommandSettings(MethodSettings, TaughtImages):
    """What is distilled from what, on which images."""

    teacher_layers: list[int] = setting([-1], _LAYERS)
    method: str = setting("hgkd", "What is learned and how; docs/methods.md has all.")
    teacher_cache: str | None = setting(
        None, "Folder or Hub id of what a teacher saw, written by `hgkd teach`: the teacher itself is not loaded."
    )
    student: str = setting(
        "resnet-50",
        "Hub id or folder of a model, a config as JSON, package.module:function that builds a network, or one of "
        f"{', '.join(PRESETS)}.",
    )
    student_pretrained: bool = setting(False, "Start from the student's own weights.")
    student_revision: str | None = setting(None, "Branch, tag or commit of the student.")

    label_column: str | None = setting(None, "Labels; needed where it is not plain.")
    streaming: bool = setting(False, "Read rows in order, without downloading first.")
    shuffle_buffer: int = setting(
        0, "Rows of a stream that are shuffled together, after its files; 0: the order of the files.", minimum=0
    )

    knn_split: str | None = setting(None, "Labelled split to evaluate on; none: no kNN.")
    knn_bank_samples: int = setting(10_000, "Training images that kNN looks up.", minimum=1)
    knn_query_samples: int = setting(2_000, "Images of --knn_split that it classifies.", minimum=1)
    resume: bool = setting(False, "Resume from the last checkpoint in --output_dir.")
    dry_run: bool = setting(False, "Check everything, print recipe, sizes, memory and steps, and stop.")

    def check(self) -> None:
        """Also refuse a buffer for what is shuffled as a whole, and a cache of several teachers."""
        super().check()
        if self.teacher_cache is not None and len(as_list(self.teacher)) > 1:
            raise ValueError(
                f"teacher_cache {self.teacher_cache!r} holds what one teacher saw, but --teacher names "
                f"{len(self.teacher)}: leave one of the two out."
            )
        if self.shuffle_buffer and not self.streaming:
            raise ValueError(
                f"shuffle_buffer is {self.shuffle_buffer}, but only a stream has one: leave --shuffle_buffer out (all "
                "rows are shuffled), or set --streaming."
            )


@dataclass
class LabelledCommandSettings(LabelledSettings, CommandSettings):
    """The same for a method that learns from labels."""

    crop_scale: list[float] = setting([0.08, 1.0], "Share of the area cropped.")
    color_jitter: float = setting(0.0, "Of brightness, contrast and saturation.", minimum=0)
    mixup: float = setting(0.0, "Alpha of mixup's Beta distribution; 0: none.", minimum=0)
    cutmix: float = setting(0.0, "Alpha of cutmix's Beta distribution; 0: none.", minimum=0)
    label_smoothing: float = setting(0.0, "Share of a label spread over all classes.", minimum=0, below=1)

    def check(self) -> None:
        """Also refuse mixed labels where single ones are needed."""
        super().check()
        if self.single_labels and (self.mixup or self.cutmix or self.label_smoothing):
            raise ValueError(
                f"{self.single_labels} needs one label an image: leave --mixup, --cutmix and --label_smoothing at 0."
            )


@dataclass
class SparseUNetCommandSettings(CommandSettings):
    """What the command has beside: the student's decoder, what computes it, and how crops are coloured.

    Teacher and student see the same colours.
    """

    teacher_layers: list[int] | None = setting(None, _FITTING)
    decoder_width: int = setting(256, "Decoder channels at the deepest scale.", minimum=1)
    color_jitter: float = setting(0.0, "Change of brightness, contrast and saturation.", minimum=0, maximum=1)
    color_distortion: float = setting(
        0.0, "Strength of random colours, hues and greying (SimCLR); 0: none.", minimum=0, maximum=1
    )
    blur_probability: float = setting(0.0, "Of a Gaussian blur.", minimum=0, maximum=1)
    cell_size: int | None = setting(None, "Side of a mask cell in pixels; default: the student's total stride.")
    sparse_backend: Literal["cells", "masked", "spconv"] = setting(
        "cells", "What computes the visible cells; equal results."
    )
