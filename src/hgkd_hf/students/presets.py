"""Students by name, for recipes and the command line."""

from __future__ import annotations

import difflib
import json
import os
from typing import TYPE_CHECKING, Any

from .import_path import is_import_path

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
} | {
    f"convnextv2-{size}": {"model_type": "convnextv2", "depths": depths, "hidden_sizes": sizes}
    for size, depths, sizes in (  # arXiv:2301.00808, appendix A
        ("atto", [2, 2, 6, 2], [40, 80, 160, 320]),
        ("femto", [2, 2, 6, 2], [48, 96, 192, 384]),
        ("pico", [2, 2, 6, 2], [64, 128, 256, 512]),
        ("nano", [2, 2, 8, 2], [80, 160, 320, 640]),
        ("tiny", [3, 3, 9, 3], [96, 192, 384, 768]),
    )
}
# Hub id and commit of their weights, trained on ImageNet-1k with labels (licence by their pages: apache-2.0).
WEIGHTS: dict[str, tuple[str, str | None]] = {
    "resnet-18": ("microsoft/resnet-18", None),
    "resnet-34": ("microsoft/resnet-34", None),
    "resnet-50": ("microsoft/resnet-50", "34c2154c194f829b11125337b98c8f5f9965ff19"),
    "resnet-101": ("microsoft/resnet-101", None),
    "resnet-152": ("microsoft/resnet-152", None),
}


def student_weights(student: str, revision: str | None = None) -> tuple[str, str | None]:
    """The Hub id or folder, and its revision, of a student's own weights.

    Raises:
        ValueError: a student of that name has none.
    """
    if is_import_path(student):
        raise ValueError(
            f"student {student!r} is built by a function: leave --student_pretrained out, and have the function load "
            "its weights."
        )
    if student not in PRESETS:
        return student, revision
    if student not in WEIGHTS:
        raise ValueError(
            f"there are no weights for student {student!r}: leave --student_pretrained out, or choose one of "
            f"{', '.join(WEIGHTS)}, a Hub id or a folder (--student)."
        )
    repo, commit = WEIGHTS[student]
    return repo, revision or commit


def student_encoder_config(student: str | dict[str, Any], revision: str | None = None) -> PreTrainedConfig:
    """The config of a student's encoder.

    Args:
        student: a name in `PRESETS`, a dict with `model_type` (or its JSON), a folder, a Hub id, or the import path of
            a function that builds a network (`package.module:function`, see `allow_code`).
        revision: of the Hub id.

    Raises:
        ValueError: the dict names no or an unknown model type; or the folder or Hub id is not there or holds no
            config, with the Hub's own words; or the student takes other images than RGB.
    """
    from transformers import AutoConfig  # not above: the names are part of --help, which is answered without torch

    if isinstance(student, str) and student.lstrip().startswith("{"):
        student = json.loads(student)
    if isinstance(student, str) and is_import_path(student):
        student = {"model_type": "module_backbone", "factory": student}
    if isinstance(student, str) and student not in PRESETS:
        if not os.path.isdir(student) and "/" not in student:
            near = difflib.get_close_matches(student, PRESETS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"there is no student {student!r}: {hint}`hgkd students` lists those that have a name; a Hub id "
                "(owner/name), a folder, a config as JSON or package.module:function works too (student)."
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
