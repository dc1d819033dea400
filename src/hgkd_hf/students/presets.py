"""Students by name, for recipes and the command line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PRESETS: dict[str, dict[str, Any]] = {
    f"resnet-{layers}": {"model_type": "resnet", "layer_type": kind, "depths": depths, "hidden_sizes": sizes}
    for layers, kind, depths, sizes in (
        (10, "basic", [1, 1, 1, 1], [64, 128, 256, 512]),
        (18, "basic", [2, 2, 2, 2], [64, 128, 256, 512]),
        (34, "basic", [3, 4, 6, 3], [64, 128, 256, 512]),
        (50, "bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
        (101, "bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
        (152, "bottleneck", [3, 8, 36, 3], [256, 512, 1024, 2048]),
    )
}


def student_encoder_config(student: str | dict[str, Any], revision: str | None = None) -> PreTrainedConfig:
    """The config of a student's encoder.

    Args:
        student: a name in `PRESETS`, a dict with `model_type` (or its JSON), a folder, or a Hub id.
        revision: of the Hub id.

    Raises:
        ValueError: the dict names no or an unknown model type; or the folder or Hub id is not there or holds no
            config, with the Hub's own words; or the student takes other images than RGB.
    """
    from transformers import AutoConfig  # not above: the names are part of --help, which is answered without torch

    if isinstance(student, str) and student.lstrip().startswith("{"):
        student = json.loads(student)
    if isinstance(student, str) and student not in PRESETS:
        if not os.path.isdir(student) and "/" not in student:
            raise ValueError(
                f"student {student!r} is neither a folder nor a Hub id nor one of {', '.join(PRESETS)} (student)."
            )
        try:
            config = AutoConfig.from_pretrained(student, revision=revision)
        except OSError as error:
            raise ValueError(f"student {student!r} cannot be loaded: {error}") from error
    else:
        fields = dict(PRESETS[student] if isinstance(student, str) else student)
        if "model_type" not in fields:
            raise ValueError(f"student {fields} names no model_type, e.g. resnet (student).")
        config = AutoConfig.for_model(**fields)
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise ValueError(
            f"student {student!r} takes images of {channels} channel(s), but learns from RGB ones: set its "
            "num_channels to 3, or choose another (student)."
        )
    return config
