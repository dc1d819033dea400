"""Stock models around a student, from its checkpoint or from a config alone."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..students.presets import PRESETS, student_encoder_config
from ..teachers.checkpoint import image_statistics


def has_weights(model: str) -> bool:
    """Whether `model` names a folder or a Hub id, rather than a preset or a config as JSON (random weights)."""
    return model not in PRESETS and not model.lstrip().startswith("{")


def model_config(model: str, revision: str | None = None) -> PreTrainedConfig:
    """The config of a checkpoint, a preset or JSON."""
    return (
        AutoConfig.from_pretrained(model, revision=revision) if has_weights(model) else student_encoder_config(model)
    )


def normalisation(model: str, revision: str | None = None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the channels that a checkpoint wants; ImageNet's where there is none."""
    if not has_weights(model):
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return image_statistics(model, {"revision": revision})


def label_maps(class_names: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` of a config."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def set_drop_path(config: PreTrainedConfig, rate: float) -> None:
    """Set the rate of stochastic depth.

    Raises:
        ValueError: the model has none, or the rate is no probability.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate is {rate}, but it must be at least 0 and below 1.")
    if not hasattr(config, "drop_path_rate"):
        if rate:
            raise ValueError(f"{config.model_type} models have no stochastic depth: leave --drop_path_rate out.")
        return
    config.drop_path_rate = rate


def check_loaded(model: str, missing: Sequence[str], prefix: str) -> None:
    """Refuse a checkpoint that would leave part of the encoder random.

    Args:
        model: the checkpoint's name.
        missing: keys that it lacked.
        prefix: of the encoder's keys.

    Raises:
        ValueError: some missing key belongs to the encoder.
    """
    holes = sorted(key for key in missing if key.startswith(prefix) and not key.endswith("num_batches_tracked"))
    if holes:
        raise ValueError(f"checkpoint {model!r} lacks {', '.join(holes[:3])} of the encoder: it is no such model.")
