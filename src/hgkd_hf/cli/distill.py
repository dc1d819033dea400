"""Distil a teacher into a small student by one of the methods of docs/methods.md, H-GKD unless told otherwise.

    hgkd distill --teacher facebook/dinov2-base --student resnet-50 --dataset path/to/images --output_dir runs/mine
    hgkd distill --method rob --teacher facebook/dinov2-small --student resnet-18 --dataset path/to/images
    accelerate launch -m hgkd_hf.cli.distill --recipe hgkd_resnet50 --dataset path/to/images

`method` decides which settings there are: `--method rob --help` lists RoB's. Every key of a recipe is a flag, and
flags win. The run's folder holds checkpoints, metrics.jsonl, summary.json and student/, a stock checkpoint for
AutoModel.from_pretrained with its card. The same command with --resume continues after a stop; --push_to_hub
--hub_model_id user/name publishes the student (`hgkd publish` does so later).
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..checkpoints.run_files import BEST_FOLDER, RECIPE_FILE, SUMMARY_FILE
from ..checkpoints.whole_folders import write_whole
from .choices import parse_method
from .errors import run_script
from .output import LOG_FILE, hush, log_to, show, show_facts
from .recipe import to_recipe

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel

    from ..hub import StudentPublisher
    from ..methods.base.method import Method
    from ..training.arguments import DistillationArguments
    from ..training.trainer import DistillationTrainer


def main(arguments: list[str] | None = None) -> dict:
    args, training = parse_method(arguments, __doc__)
    from .resume import run_folder  # here and below: after --help is answered

    with nullcontext() if args.dry_run else run_folder(training):
        return distill(args, training, command_line(training, arguments))


def distill(args: Method, training: DistillationArguments, command: str) -> dict:
    """The whole run, of which the summary is returned; `command` is for its card."""
    from transformers import set_seed

    from ..checkpoints.identity import check_same_run
    from ..data import collate
    from ..data.skipped import SKIPPED_FILE, count_skipped
    from ..training.arguments import warn_of_slow_bf16
    from .resume import checkpoint_to_resume

    hush()
    run = Path(training.output_dir)
    if args.teacher_dtype == "bfloat16" and args.cache is None:
        warn_of_slow_bf16(training.use_cpu, "--teacher_dtype float32")
    set_seed(training.seed)
    model = args.build_model()
    train = args.training_data(model, training.seed, None if args.dry_run else run / SKIPPED_FILE)
    knn_datasets = args.evaluation_data(model)
    checkpoint = checkpoint_to_resume(run, args.resume)
    if not args.dry_run:
        log_to(run)
    training.settle_batch_size(model, train, collate)
    settings = args.identity(model) | training.identity()
    check_same_run(
        run,
        settings,
        resume=args.resume,
        allow_changes=training.allow_changes,
        earlier=args.earlier(),
        write=training.process_index == 0 and not args.dry_run,
    )
    if args.dry_run:
        return dry_run(args, training, model, train, knn_datasets)
    trainer, publisher = build_trainer(args, training, model, train, knn_datasets)
    publisher.card.command = command
    said = publisher.card.description
    if trainer.is_world_process_zero():
        write_whole(run / RECIPE_FILE, to_recipe(args, training))
        show_facts(said)

    summary = {"method": args.title, "student": said["student"], "teacher": said["teacher"], "seed": training.seed}
    if checkpoint is None:
        args.prepare(model, training.seed)
    if knn_datasets is not None and checkpoint is None:
        summary["before"] = trainer.evaluate(metric_key_prefix="before")
    start, process_start = time.perf_counter(), time.process_time()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    summary |= {"train_loss": trained.training_loss, "steps": trained.global_step}
    summary["train_seconds"] = round(time.perf_counter() - start, 1)
    summary["process_seconds"] = round(time.process_time() - process_start, 1)  # of all its threads, without workers
    if knn_datasets is not None:
        summary["after"] = trainer.evaluate(metric_key_prefix="after")
    summary["images_skipped"] = count_skipped(run / SKIPPED_FILE)
    trainer.save_model()
    if trainer.is_world_process_zero():
        finish(run, args, training, trainer, publisher, summary)
    return summary


def build_trainer(
    args: Method,
    training: DistillationArguments,
    model: PreTrainedModel,
    train: Dataset,
    knn_datasets: tuple[Dataset, Dataset] | None,
) -> tuple[DistillationTrainer, StudentPublisher]:
    """The trainer, and what publishes its student: it knows what the run is, and that the Hub would take it."""
    from ..hub import StudentPublisher, find_source, student_image_processor
    from ..report import ReportCallback
    from ..training.trainer import DistillationTrainer

    config = model.config
    processor = student_image_processor(config.image_size, config.image_mean, config.image_std)
    trainer = DistillationTrainer(model, training, train, knn_datasets, processor)
    publisher = StudentPublisher(trainer)
    trainer.add_callback(ReportCallback(trainer))
    trainer.add_callback(publisher)
    card = publisher.card
    card.description = args.describe(model) | training.describe()
    card.add_settings(args)
    if args.student_pretrained:
        card.start = find_source(args.student, "model", args.student_revision)
    if training.push_to_hub:
        publisher.check_publishing()
    return trainer, publisher


def dry_run(
    args: Method,
    training: DistillationArguments,
    model: PreTrainedModel,
    train: Dataset,
    knn_datasets: tuple[Dataset, Dataset] | None,
) -> dict:
    """Print what the run would be: recipe, networks, data, steps, memory, speed. Its folder is left as it is."""
    from ..data import collate
    from ..training.arguments import available_cores
    from ..training.memory_estimate import estimate_memory, free_memory, gigabytes, local_processes
    from ..training.speed_estimate import estimate_speed

    recipe = to_recipe(args, training)
    memory = estimate_memory(model, train, collate, training.device, training.autocast_dtype)
    free = free_memory(training.device)
    with TemporaryDirectory() as folder:  # `Trainer` makes its folder: let that be elsewhere
        training.output_dir = str(Path(folder, Path(training.output_dir).name))
        trainer, publisher = build_trainer(args, training, model, train, knn_datasets)
        *_, steps = trainer.set_initial_training_values(training, trainer.get_train_dataloader())
    batch_size, workers = training.per_device_train_batch_size, training.dataloader_num_workers
    images = steps * training.images_per_step
    rows = len(train) if hasattr(train, "__len__") else None
    epochs = f", {images / rows:.3g} epochs" if rows else ""
    speed = estimate_speed(
        model, train, collate, training.device, batch_size, trainer.compute_loss_context_manager
    ).describe(images, rows, training.world_size, workers, max(1, available_cores() // local_processes()))
    needed = memory.describe(batch_size)
    if trainer.is_world_process_zero():
        show(recipe)
        show_facts(
            publisher.card.description
            | {
                "steps": f"{steps:,}{epochs}, {images:,} images",
                "memory": f"{needed} (an estimate); {gigabytes(free)} free on {training.device}",
                **speed,
                "dry run": "all checks passed; nothing was written",
            }
        )
    return {"steps": steps, "memory": memory.weights + memory.step(batch_size)}


def command_line(training: DistillationArguments, arguments: list[str] | None) -> str:
    """The command of this run, for its card."""
    from ..hub.privacy import public_command

    program = ["hgkd", "distill"]
    if training.world_size > 1:
        program = ["accelerate", "launch", "-m", "hgkd_hf.cli.distill"]
    return public_command([*program, *(sys.argv[1:] if arguments is None else arguments)])


def finish(
    run: Path,
    args: Method,
    training: DistillationArguments,
    trainer: DistillationTrainer,
    publisher: StudentPublisher,
    summary: dict,
) -> None:
    """Write the student's folder and the summary, and say where everything lies."""
    from ..report import write_report
    from ..training.callbacks import warn_only

    student = publisher.export_student()
    best = trainer.state.best_model_checkpoint
    # Of a run that was fetched from the Hub, the best may lie elsewhere.
    if best is not None and Path(best).is_dir() and not best.endswith(f"-{trainer.state.global_step}"):
        summary["best"] = {"checkpoint": best, "eval_knn_accuracy": trainer.state.best_metric}
        model, metrics = type(trainer.model).from_pretrained(best), {"knn_accuracy": trainer.state.best_metric}
        publisher.export_student(run / BEST_FOLDER, model, metrics)
    write_whole(run / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    with warn_only("the report"):
        show(f"report: {write_report(run)}")
    show(f"{summary['steps']} steps in {summary['train_seconds']} s, mean loss {summary['train_loss']:.4f}")
    if "after" in summary:
        k, temperature = training.knn_k, training.knn_temperature
        before = f"{summary['before']['before_knn_accuracy']:.4f} before, " if "before" in summary else ""
        show(f"kNN (k {k}, T {temperature}): {before}{summary['after']['after_knn_accuracy']:.4f} after")
        if "after_accuracy" in summary["after"]:
            show(f"top-1 on {args.knn_split}: {summary['after']['after_accuracy']:.4f}")
    show(f"student: {student}\n    run: {run} (summary.json, metrics.jsonl, {LOG_FILE})")
    if training.push_to_hub:
        show(f"published: {publisher.push_to_hub().commit_url}")


if __name__ == "__main__":
    run_script(main)
