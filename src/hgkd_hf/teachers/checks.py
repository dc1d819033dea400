"""What a vision transformer must be to teach, in one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig, PreTrainedModel


def check_input(teacher_input: str, config: PreTrainedConfig, name: str) -> None:
    """Refuse an unknown `teacher_input`, or one that the model of `config` cannot be given."""
    if teacher_input not in ("full", "masked", "visible"):
        raise ValueError(f"teacher_input is {teacher_input!r}, but it must be 'full', 'masked' or 'visible'.")
    if teacher_input != "full" and hasattr(config, "depths"):
        raise ValueError(
            f"teacher_input={teacher_input!r} needs a teacher with one token a patch, but {name!r} "
            f"({config.model_type}) merges patches from stage to stage: use teacher_input='full' or another teacher."
        )
    relative = any(getattr(config, f"use_{kind}relative_position_bias", False) for kind in ("", "shared_"))
    if teacher_input == "visible" and (relative or hasattr(config, "rope_theta")):
        raise ValueError(
            f"teacher_input='visible' drops tokens, which needs absolute positions, but {name!r} "
            f"({config.model_type}) has relative ones: use teacher_input='masked' or 'full', or another teacher."
        )


def not_a_vit(config: PreTrainedConfig, name: str) -> str:
    """What is said of a model that is none."""
    return (
        f"teacher {name!r} is a {config.model_type} model, but `teacher` must be a vision transformer that turns an "
        f"image into a grid of patch tokens, e.g. facebook/dinov2-small."
    )


def check_channels(config: PreTrainedConfig, name: str) -> None:
    """Refuse a model for other images than RGB."""
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"teacher {name!r} takes images of {channels} channel(s), but is shown RGB ones: choose one with 3 "
            "(--teacher)."
        )


def is_vit(config: PreTrainedConfig) -> bool:
    """Whether a config is of a vision transformer whose last tokens are its patches, as those of YOLOS are not."""
    vision = getattr(config, "vision_config", config)
    attends = hasattr(vision, "num_attention_heads") or hasattr(vision, "num_heads")
    return attends and hasattr(vision, "patch_size") and not hasattr(vision, "num_detection_tokens")


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Refuse what the config already shows to be no ViT, or one whose last tokens are no patches (YOLOS)."""
    check_channels(getattr(config, "vision_config", config), name)
    if not is_vit(config):
        raise ValueError(not_a_vit(config, name))


def check_whole(model: PreTrainedModel, missing: Iterable[str], name: str) -> None:
    """Refuse a model of which a checkpoint lacks the weights `missing`: they would be random."""
    if missing := sorted(missing):
        raise ValueError(
            f"the teacher {name!r} would be partly random: its checkpoint lacks {len(missing)} weights of "
            f"{type(model).__name__} (first: {missing[0]}); choose a checkpoint that holds the whole model."
        )


def check_image_size(image_size: int | Sequence[int] | None, patch_size: int) -> tuple[int, int]:
    """(height, width), multiples of the patch size."""
    if image_size is None:
        raise ValueError("the teacher's config names no image_size: pass image_size, in pixels.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for size in (height, width):
        if size % patch_size or size < patch_size:
            below, above = size // patch_size * patch_size, (size // patch_size + 1) * patch_size
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"the teacher's image_size {size} is not a multiple of its {patch_size}-pixel patches: "
                f"set image_size to {nearest}."
            )
    return height, width


def check_layers(layers: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    """The layers as a tuple of -1 and, where there are blocks, 0..depth."""
    layers = tuple(layers)
    known = range(-1, depth + 1) if depth else (-1,)
    wrong = [layer for layer in layers if layer not in known]
    if wrong or not layers:
        blocks = f", 1 to {depth} (blocks) or 0 (the mean of the upper half of them)" if depth else ""
        allowed = f"-1 (final output){blocks}"
        raise ValueError(f"layers of teacher {name!r} must be {allowed}, not {wrong[0] if wrong else layers}.")
    return layers
