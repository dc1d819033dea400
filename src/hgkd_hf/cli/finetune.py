"""Fine-tune a student, or any CNN of the Hub, for classification, segmentation or detection.

    hgkd finetune --model runs/mine/student --dataset uoft-cs/cifar10 --eval_split test --output_dir runs/mine-cifar10
    hgkd finetune --task semantic-segmentation --model runs/mine/student --dataset path/to/scenes
    accelerate launch -m hgkd_hf.cli.finetune --recipe finetune_cifar10 --dataset uoft-cs/cifar10

`task` decides which settings there are: `--task object-detection --help` lists those of detection. Every key of a
recipe is a flag, and flags win. The run's folder holds checkpoints, metrics.jsonl, summary.json and model/, a stock
checkpoint with its image processor for the task's pipeline. The same command with --resume continues after a stop.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.run_files import RECIPE_FILE, SUMMARY_FILE
from ..checkpoints.whole_folders import write_whole
from .choices import parse_task
from .errors import run_script
from .output import LOG_FILE, hush, log_to, show, show_facts
from .recipe import to_recipe

if TYPE_CHECKING:
    from ..finetuning.publisher import FineTunedPublisher
    from ..finetuning.task import Task
    from ..finetuning.trainer import FineTuningArguments

NO_PART_OF_IDENTITY = ("resume", "eval_split", "max_eval_samples")


def main(arguments: list[str] | None = None) -> dict:
    task, training = parse_task(arguments, __doc__)
    from .resume import run_folder  # here and below: after --help is answered

    with run_folder(training):
        return finetune(task, training, ["hgkd", "finetune", *(sys.argv[1:] if arguments is None else arguments)])


def finetune(task: Task, training: FineTuningArguments, command: list[str]) -> dict:
    """The whole run, of which the summary is returned."""
    from transformers import set_seed

    from ..checkpoints.identity import check_same_run
    from ..data.skipped import SKIPPED_FILE, count_skipped
    from ..finetuning.publisher import FineTunedPublisher
    from ..finetuning.trainer import FineTuningTrainer
    from ..hub.privacy import public_command
    from ..report import ReportCallback
    from .resume import checkpoint_to_resume

    hush()
    run = Path(training.output_dir)
    checkpoint = checkpoint_to_resume(run, task.resume)
    set_seed(training.seed)
    model = task.build_model()
    train, evaluated = task.training_data(training.seed, run / SKIPPED_FILE), task.evaluation_data()
    run.mkdir(parents=True, exist_ok=True)
    log_to(run)
    training.settle_batch_size(model, train, task.collate)
    training.settle_layer_decay(task)
    check_same_run(
        run,
        identity(task, training),
        resume=task.resume,
        allow_changes=training.allow_changes,
        write=training.process_index == 0,
    )
    trainer = FineTuningTrainer(model, training, task, train, evaluated, task.image_processor())
    publisher = FineTunedPublisher(trainer)
    trainer.add_callback(ReportCallback(trainer))
    trainer.add_callback(publisher)
    weights = "trained" if task.has_weights else "random"
    facts = {
        "model": f"{type(model).__name__} ({task.model}), {model.num_parameters() / 1e6:.1f} M parameters, {weights} "
        f"weights of the encoder, layer decay {training.layer_decay:g}",
        "data": f"{task.source.name}, {task.source.num_rows:,} images of {len(task.names)} classes",
    }
    publisher.card.description = facts | training.describe()
    publisher.card.command = public_command(command)
    publisher.card.add_settings(task)
    if training.push_to_hub:
        publisher.check_publishing()
    if trainer.is_world_process_zero():
        write_whole(run / RECIPE_FILE, to_recipe(task, training))
        show_facts(publisher.card.description)

    start = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    skipped = count_skipped(run / SKIPPED_FILE)
    summary = {
        "task": task.task,
        "model": task.model,
        "dataset": task.dataset,
        "images": task.source.num_rows - skipped,
        "images_skipped": skipped,
        "seed": training.seed,
        "steps": trained.global_step,
        "train_loss": trained.training_loss,
        "train_seconds": round(time.perf_counter() - start, 1),
    }
    if evaluated is not None:
        metrics = trainer.evaluate(metric_key_prefix="test").items()
        # JSON has no NaN, which is the metric of a class that no image holds.
        summary["metrics"] = {name.removeprefix("test_"): None if math.isnan(x) else x for name, x in metrics}
    if trainer.is_world_process_zero():
        finish(run, publisher, summary)
    return summary


def identity(task: Task, training: FineTuningArguments) -> dict:
    """What decides what is learned: a run that is resumed must not change it."""
    settings = {name: value for name, value in asdict(task).items() if name not in NO_PART_OF_IDENTITY}
    return settings | training.identity() | task.fingerprints()


def finish(run: Path, publisher: FineTunedPublisher, summary: dict) -> None:
    """Write the model's folder and the summary, and say where everything lies."""
    model = publisher.export()
    write_whole(run / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    show(f"{summary['steps']} steps in {summary['train_seconds']} s, mean loss {summary['train_loss']:.4f}")
    for name, value in summary.get("metrics", {}).items():
        show(f"{name}: {'-' if value is None else f'{value:.4f}'}")
    show(f"model: {model}\n  run: {run} (summary.json, metrics.jsonl, {LOG_FILE})")
    if publisher.args.push_to_hub:
        show(f"published: {publisher.push_to_hub().commit_url}")


if __name__ == "__main__":
    run_script(main)
