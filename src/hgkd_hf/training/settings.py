"""The settings of a training that are ours, or whose default is; nothing here imports torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainingSettings:
    """Fields that are not those of `TrainingArguments`, and the field's defaults for masked pre-training."""

    _argument_group_name = "training"  # the heading of these flags in --help

    base_learning_rate: float = field(
        default=2e-3, metadata={"help": "Learning rate for 256 images a step; grows with the root of their number."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate as it is; overrides --base_learning_rate."}
    )
    sync_batch_norm: bool = field(
        default=True, metadata={"help": "Share BatchNorm's training statistics among processes."}
    )
    knn_k: int = field(default=20, metadata={"help": "Neighbours of the kNN evaluation."})
    knn_temperature: float = field(default=0.07, metadata={"help": "Temperature of the kNN evaluation's weights."})
    max_non_finite_steps: int = field(
        default=10, metadata={"help": "Steps with a loss or gradient that is not finite are skipped, up to so many."}
    )
    max_skipped_share: float = field(
        default=0.1, metadata={"help": "Share of the images that may be unreadable before the run ends."}
    )
    allow_changes: list[str] = field(
        default_factory=list,
        metadata={"help": "Settings that --resume may find changed, by name, or all; they are applied from there on."},
    )

    license: str | None = field(
        default=None, metadata={"help": "Of the published student; needed where teacher and data do not decide it."}
    )
    precision: str | None = field(
        default=None,
        metadata={"help": "float32 | bf16 | fp16 | auto: bf16 where the device has it. Overrides --bf16, --fp16."},
    )

    output_dir: str = field(default="runs/distillation", metadata={"help": "The run's folder."})
    per_device_train_batch_size: int | str = field(
        default=32, metadata={"help": "Images of a batch; auto: as many as the free memory holds, up to 256."}
    )
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images of a batch of evaluation."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "How the learning rate falls: cosine, linear, constant_with_warmup, ..."}
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps in which the learning rate rises; below 1: their share of all."}
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "Of weights; biases, norms and mask tokens have none."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Decay of AdamW's second moment."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Longer gradients are cut to this length."})
    logging_steps: float = field(default=10, metadata={"help": "Steps from log to log; below 1: a share of all."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave it: losses that are not finite are left out without it."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave it: samples are what models take."})
    dataloader_num_workers: int | str = field(
        default=0, metadata={"help": "Processes that read images; auto: the cores that each training process has."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Leave it: every parameter of a distiller is used."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept, the best not counted in."}
    )
