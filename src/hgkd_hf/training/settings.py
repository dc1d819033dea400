"""The settings of a training that are ours, or whose default is; nothing here imports torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass

from ..methods.base.settings import Settings, setting


@dataclass
class TrainingSettings(Settings):
    """Fields that are not those of `TrainingArguments`, and the field's defaults for masked pre-training."""

    _argument_group_name = "training"  # the heading of these flags in --help

    base_learning_rate: float = setting(
        2e-3, "Learning rate for 256 images a step; grows with the root of their number."
    )
    learning_rate: float | None = setting(None, "Learning rate as it is; overrides --base_learning_rate.")
    sync_batch_norm: bool = setting(True, "Share BatchNorm's training statistics among processes.")
    knn_k: int = setting(20, "Neighbours of the kNN evaluation.", minimum=1)
    knn_temperature: float = setting(0.07, "Temperature of the kNN evaluation's weights.", above=0)
    max_non_finite_steps: int = setting(
        10, "Steps with a loss or gradient that is not finite are skipped, up to so many.", minimum=0
    )
    max_skipped_share: float = setting(
        0.1, "Share of the images that may be unreadable before the run ends.", minimum=0, maximum=1
    )
    allow_changes: list[str] = setting(
        [], "Settings that --resume may find changed, by name, or all; they are applied from there on."
    )

    license: str | None = setting(None, "Of the published student; needed where teacher and data do not decide it.")
    precision: str | None = setting(
        None, "float32 | bf16 | fp16 | auto: bf16 where the device has it. Overrides --bf16, --fp16."
    )

    output_dir: str = setting("runs/distillation", "The run's folder.")
    per_device_train_batch_size: int | str = setting(
        32, "Images of a batch; auto: as many as the free memory holds, up to 256."
    )
    per_device_eval_batch_size: int = setting(128, "Images of a batch of evaluation.")
    lr_scheduler_type: str = setting(
        "cosine", "Schedule of the learning rate: cosine, linear, constant_with_warmup, ..."
    )
    warmup_steps: float = setting(0.05, "Steps in which the learning rate rises; below 1: their share of all.")
    weight_decay: float = setting(0.05, "Of weights; biases, norms and mask tokens have none.")
    adam_beta2: float = setting(0.95, "Decay of AdamW's second moment.")
    max_grad_norm: float = setting(5.0, "Longer gradients are cut to this length.")
    logging_steps: float = setting(10, "Steps from log to log; below 1: a share of all.")
    logging_nan_inf_filter: bool = setting(False, "Leave it: losses that are not finite are left out without it.")
    remove_unused_columns: bool = setting(False, "Leave it: samples are what models take.")
    dataloader_num_workers: int | str = setting(
        0, "Processes that read images; auto: the cores that each training process has."
    )
    ddp_find_unused_parameters: bool | None = setting(False, "Leave it: every parameter of a distiller is used.")
    save_total_limit: int | None = setting(2, "Checkpoints that are kept, the best not counted in.")
