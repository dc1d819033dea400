"""The settings of fine-tuning that are ours, or whose default is; as in `training/settings.py`, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..training.settings import TrainingSettings


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
