"""The flags of a short fine-tuning of each task."""

from pathlib import Path

TASKS = {
    "image-classification": {"image_size": 64, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "semantic-segmentation": {"image_size": [64, 96], "head_width": 16, "ignore_index": 2},
    "object-detection": {"image_size": [64, 96], "head_width": 32, "num_queries": 10, "decoder_layers": 1},
}
TASKS["semantic-segmentation"]["class_names"] = ["ground", "thing"]


def flags(dataset: Path, model: Path, output: Path, task: str, **settings) -> list[str]:
    settings = {
        "task": task,
        "dataset": dataset,
        "model": model,
        "image_column": "image",
        "eval_split": "test",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": output,
        **TASKS[task],
        **settings,
    }
    arguments = []
    for name, value in settings.items():
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments
