"""TensorBoard, Trackio and Weights & Biases (`report_to`): all of a run in one place, and its pictures too."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

if TYPE_CHECKING:
    from transformers import Trainer


def settle_trackers(trainer: Trainer) -> None:
    """Let a run that evaluates before and after its training report to one place.

    On their own, TensorBoard would open a folder outside of the run for what comes before the training, and Trackio a
    run of another name for what comes after it.
    """
    run = Path(trainer.args.output_dir)
    if trainer.args.report_to and trainer.args.run_name is None:
        trainer.args.run_name = run.absolute().name
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run / "tensorboard")


def log_pictures(callback: TrainerCallback, pictures: Mapping[str, Path], step: int) -> None:
    """Hand pictures to a tracker that is running; other callbacks are left alone.

    Args:
        callback: of a trainer.
        pictures: image files by the name that the tracker shows.
        step: at which they were drawn.
    """
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        for name, path in pictures.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            callback.tb_writer.add_image(name, pixels, step, dataformats="HWC")
        callback.tb_writer.flush()
    elif isinstance(callback, (TrackioCallback, WandbCallback)):
        tracker = import_module("trackio" if isinstance(callback, TrackioCallback) else "wandb")
        images = {name: tracker.Image(str(path)) for name, path in pictures.items()}
        tracker.log({**images, "train/global_step": step})  # as the callback logs numbers
