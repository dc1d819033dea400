"""What a teacher's repository tells beside its weights: its commit, and how it normalises images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

logger = logging.get_logger(__name__)


def resolve_revision(name: str, revision: str | None, token: str | bool | None, local_files_only: bool) -> str | None:
    """The commit sha of a Hub id (offline: that of its cached files), else `revision` as it is."""
    if os.path.isdir(name):
        return revision
    # Whatever goes wrong here is no reason to fail: the files may be cached, and if not, loading them says it better.
    if not local_files_only:
        with suppress(Exception):
            return HfApi().model_info(name, revision=revision, token=token, timeout=10).sha
    with suppress(Exception):
        return Path(try_to_load_from_cache(name, "config.json", revision=revision)).parent.name
    return revision


def load_weights(kind: Any, name: str, **arguments: Any) -> tuple[PreTrainedModel, dict]:
    """A model of an Auto class (or a model class) with its loading info: safetensors only, without remote code.

    Raises:
        OSError: the checkpoint has weights in another format alone; or the Hub's own error for a repository, revision
            or file that is not there.
    """
    try:
        return kind.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **arguments
        )
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"the teacher {name!r} has no weights as safetensors, and files of other formats may run code when they "
            f'are loaded. Convert it where you trust it, and name the new folder: python -c "from transformers import '
            f"{kind.__name__}; {kind.__name__}.from_pretrained({name!r}, use_safetensors=False)"
            f".save_pretrained('converted')\"."
        ) from error


def image_statistics(name: str, hub: dict) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std from the image processor's file. Read as JSON: DINOv3's processor class needs torchvision."""
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name, **hub)
    except OSError:
        processor = {}
    if processor.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if not {"image_mean", "image_std"} <= processor.keys():
        logger.warning("teacher %s has no image_mean and image_std in a processor file: using ImageNet's.", name)
    return processor.get("image_mean", IMAGENET_DEFAULT_MEAN), processor.get("image_std", IMAGENET_DEFAULT_STD)
