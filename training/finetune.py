"""Fine-tune a student, or any CNN of the Hub, on labels: classification, segmentation or detection.

    accelerate launch training/finetune.py --recipe training/recipes/finetune_cifar10.yaml \\
        --dataset uoft-cs/cifar10 --model runs/mine/student --output_dir runs/mine-cifar10
    python training/finetune.py --task semantic-segmentation --model runs/mine/student/sparse_unet ...

Every key of a recipe is a flag, and flags win. The run's folder holds checkpoints, metrics.jsonl, summary.json and
model/, a stock checkpoint with its image processor for the task's pipeline. The same command with --resume goes on.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from hgkd_hf.data import ImageSource, load_images
from hgkd_hf.finetuning import TASKS, FineTuningArguments, FineTuningTrainer, normalisation
from hgkd_hf.recipe import parse_recipe
from hgkd_hf.students.presets import PRESETS


@dataclass
class TaskArguments:
    """What is fine-tuned for what, on which images."""

    dataset: str = field(metadata={"help": "Hub id or path: a folder of images, of parquet files, a saved dataset."})
    model: str = field(
        metadata={
            "help": "Folder or Hub id of the pre-trained model (a run's student/, or student/sparse_unet to keep the "
            f"decoder in segmentation); random weights: a config as JSON, or one of {', '.join(PRESETS)}."
        }
    )
    task: str = field(default="image-classification", metadata={"help": " | ".join(TASKS)})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})

    split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; none: no evaluation."})
    max_samples: int | None = field(
        default=None, metadata={"help": "Train on at most so many images, drawn once and for all seeds."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on at most so many images."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    target_column: str | None = field(default=None, metadata={"help": "Column of the labels, masks or objects."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes by integer, where the dataset does not name them."}
    )

    image_size: int = field(default=224, metadata={"help": "Pixels of the side of the images."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.25, 1.0], metadata={"help": "Share of the area cropped in training."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    color_jitter: float = field(default=0.0, metadata={"help": "Strength of the change of colours."})
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth, of models that have it."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


def open_split(args: TaskArguments, split: str, max_samples: int | None) -> ImageSource:
    return load_images(
        args.dataset,
        split=split,
        config_name=args.dataset_config,
        revision=args.dataset_revision,
        image_column=args.image_column,
        label_column=args.target_column,
        max_samples=max_samples,
    )


def find_class_names(args: TaskArguments, source: ImageSource) -> tuple[str, ...]:
    if args.class_names is not None:
        return tuple(args.class_names)
    if source.class_names is not None:
        return source.class_names
    raise ValueError(f"{source.name!r} does not name its classes: name them with --class_names.")


def build_task(args: TaskArguments, training: FineTuningArguments, source: ImageSource):
    mean, std = normalisation(args.model, args.model_revision)
    return TASKS[args.task](
        class_names=find_class_names(args, source),
        image_size=args.image_size,
        crop_scale=tuple(args.crop_scale),
        flip_probability=args.flip_probability,
        color_jitter=args.color_jitter,
        label_smoothing=training.label_smoothing_factor,
        drop_path_rate=args.drop_path_rate,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )


def find_checkpoint(args: TaskArguments, training: FineTuningArguments) -> str | None:
    """The checkpoint to go on from; a folder with checkpoints is not overwritten by accident."""
    run = Path(training.output_dir)
    checkpoint = get_last_checkpoint(str(run)) if run.is_dir() else None
    if checkpoint is None and args.resume:
        raise ValueError(f"--resume: there is no checkpoint in {run} (--output_dir).")
    if checkpoint is not None and not args.resume:
        raise ValueError(
            f"{run} holds {Path(checkpoint).name}: add --resume to go on, or choose another --output_dir."
        )
    return checkpoint


def main(arguments: list[str] | None = None) -> dict:
    args, training = parse_recipe((TaskArguments, FineTuningArguments), arguments, __doc__)
    if args.task not in TASKS:
        raise ValueError(f"task is {args.task!r}: choose one of {', '.join(TASKS)}.")
    checkpoint = find_checkpoint(args, training)
    set_seed(training.seed)
    source = open_split(args, args.split, args.max_samples)
    task = build_task(args, training, source)
    train = task.dataset(source, train=True, seed=training.seed)
    evaluated = None
    if args.eval_split is not None:
        evaluated = task.dataset(open_split(args, args.eval_split, args.max_eval_samples), train=False, seed=0)
    model = task.build_model(args.model, args.model_revision)
    trainer = FineTuningTrainer(model, training, task, train, evaluated, task.image_processor())

    run = Path(training.output_dir)
    if trainer.is_world_process_zero():
        run.mkdir(parents=True, exist_ok=True)
        settings = asdict(args) | {k: v for k, v in training.to_dict().items() if v is not None}
        (run / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        print(f"  model: {type(model).__name__} ({args.model}), {model.num_parameters() / 1e6:.1f} M parameters")
        print(f"   data: {source.name}, {source.num_rows:,} images of {len(task.class_names)} classes", flush=True)

    start = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    summary = {
        "task": args.task,
        "model": args.model,
        "dataset": args.dataset,
        "images": source.num_rows,
        "seed": training.seed,
        "steps": trained.global_step,
        "train_loss": trained.training_loss,
        "train_seconds": round(time.perf_counter() - start, 1),
    }
    if evaluated is not None:
        metrics = trainer.evaluate()
        summary["metrics"] = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    if trainer.is_world_process_zero():
        trainer.evaluated_model.save_pretrained(run / "model")
        trainer.processing_class.save_pretrained(run / "model")
        (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(f"{summary['steps']} steps in {summary['train_seconds']} s, mean loss {summary['train_loss']:.4f}")
        for name, value in summary.get("metrics", {}).items():
            if isinstance(value, float):
                print(f"{name}: {value:.4f}")
        print(f"model: {run / 'model'}\nsummary: {run / 'summary.json'}")
    return summary


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        sys.exit(f"error: {error}")
