"""Distil a vision transformer into a small CNN by masked image modelling.

    accelerate launch training/distill.py --recipe training/recipes/hgkd_resnet50.yaml --dataset path/to/images
    python training/distill.py --recipe ... --teacher facebook/dinov2-small --student resnet-18
    torchrun --nproc-per-node 2 training/distill.py --recipe ...

Every key of a recipe is a flag, and flags win. The run's folder holds checkpoints, metrics.jsonl, summary.json and
student/, a stock checkpoint for AutoModel.from_pretrained. The same command with --resume goes on after a stop.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
import yaml
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

import hgkd_hf
from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.data import (
    DistillationDataset,
    EvaluationDataset,
    ImageSource,
    ImageTransform,
    StreamingDistillationDataset,
    load_images,
)
from hgkd_hf.distillers.hgkd import aligned_teacher_image_size
from hgkd_hf.hub import StudentCard, export_student, student_image_processor
from hgkd_hf.recipe import parse_recipe
from hgkd_hf.sparse import check_exact
from hgkd_hf.students.presets import PRESETS, student_encoder_config
from hgkd_hf.trainer import DistillationArguments, DistillationTrainer


@dataclass
class HGKDArguments:
    """What is distilled from what, on which images."""

    dataset: str = field(metadata={"help": "Hub id or path: a folder of images, of parquet files, a saved dataset."})
    teacher: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a ViT; none: pixels alone are predicted (SparK)."}
    )
    student: str = field(
        default="resnet-50",
        metadata={"help": f"Hub id or folder of a CNN, a config as JSON, or one of {', '.join(PRESETS)}."},
    )
    student_pretrained: bool = field(default=False, metadata={"help": "Start from the student's own weights."})
    decoder_width: int = field(default=768, metadata={"help": "Decoder channels at the deepest scale."})
    cell_size: int | None = field(default=None, metadata={"help": "Side of a mask cell in pixels."})

    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Target layers: -1 = final output, i = block i."}
    )
    teacher_input: str = field(default="full", metadata={"help": "full | masked: what the teacher sees."})
    teacher_image_size: int | None = field(default=None, metadata={"help": "Default: aligned with the cells."})
    teacher_dtype: str = field(default="float32", metadata={"help": "float32 | bfloat16 | float16."})

    mask_ratio: float = field(default=0.6, metadata={"help": "Share of the cells that are hidden."})
    decoder: str = field(default="truncated", metadata={"help": "truncated | full."})
    loss: str = field(default="smooth-l1", metadata={"help": "smooth-l1 | mse | cosine."})
    smooth_l1_beta: float = field(default=2.0, metadata={"help": "Where smooth-l1 turns linear."})
    positions: str = field(default="masked", metadata={"help": "masked | all: which positions are predicted."})
    feature_weight: float = field(default=1.0, metadata={"help": "Weight of the feature term."})
    pixel_weight: float = field(default=0.0, metadata={"help": "Weight of the pixel term (needs decoder full)."})

    image_size: int = field(default=224, metadata={"help": "Pixels of the student's crops."})
    crop_scale: list[float] = field(
        default_factory=lambda: [0.67, 1.0], metadata={"help": "Share of the area cropped."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of a horizontal flip."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    label_column: str | None = field(default=None, metadata={"help": "Labels, for the kNN evaluation only."})
    streaming: bool = field(default=False, metadata={"help": "Read rows in order, without downloading first."})
    max_samples: int | None = field(default=None, metadata={"help": "Use at most so many images."})

    knn_split: str | None = field(default=None, metadata={"help": "Labelled split to evaluate on; none: no kNN."})
    knn_bank_samples: int = field(default=10_000, metadata={"help": "Training images that kNN looks up."})
    knn_query_samples: int = field(default=2_000, metadata={"help": "Images of --knn_split that it classifies."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."})


# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "mask_ratio",
    "decoder",
    "loss",
    "smooth_l1_beta",
    "positions",
    "feature_weight",
    "pixel_weight",
    "teacher_input",
)


def build_model(args: HGKDArguments) -> HGKDForPreTraining:
    """Student and teacher, checked against each other before any weights are loaded where configs tell enough."""
    student_config = SparseUNetConfig(
        encoder_config=student_encoder_config(args.student),
        cell_size=args.cell_size,
        decoder_width=args.decoder_width,
        decoder_stride=1 if args.decoder == "full" else None,
    )
    settings = {name: getattr(args, name) for name in CONFIG_FIELDS}
    if args.teacher is None:
        if args.feature_weight:
            raise ValueError(
                "feature_weight is above 0, but there is no teacher: name one with --teacher, or set "
                "--feature_weight 0 --pixel_weight 1 --decoder full for the pixel baseline."
            )
        model = HGKDForPreTraining(HGKDConfig(student_config=student_config, **settings))
    else:
        teacher = load_teacher(args, student_config)
        del settings["teacher_input"]
        model = HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student_config, **settings)).attach_teacher(teacher)
    if args.student_pretrained:
        encoder = transformers.AutoModel.from_pretrained(args.student, use_safetensors=True, dtype=torch.float32)
        model.student.encoder.load_state_dict(encoder.state_dict())
    check_exact(model.student.encoder, model.student.config.cell_size)  # now rather than after days
    return model


def load_teacher(args: HGKDArguments, student_config: SparseUNetConfig) -> PatchTeacher:
    """The teacher, at the image size at which its tokens divide the student's cells."""
    image_size = args.teacher_image_size or aligned_teacher_image_size(
        PatchTeacher.patch_size_of(args.teacher, revision=args.teacher_revision), args.image_size, student_config
    )
    if args.teacher_dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"teacher_dtype is {args.teacher_dtype!r}: choose float32, bfloat16 or float16.")
    return PatchTeacher.from_pretrained(
        args.teacher,
        revision=args.teacher_revision,
        layers=args.teacher_layers,
        image_size=image_size,
        dtype=getattr(torch, args.teacher_dtype),
        teacher_input=args.teacher_input,
    )


def build_datasets(args: HGKDArguments, training: DistillationArguments, config: HGKDConfig) -> tuple:
    """The training dataset, the (bank, queries) of the kNN evaluation or None, and the training source."""

    def source(split: str, samples: int | None, streaming: bool = False) -> ImageSource:
        return load_images(
            args.dataset,
            split=split,
            config_name=args.dataset_config,
            revision=args.dataset_revision,
            streaming=streaming,
            image_column=args.image_column,
            label_column=args.label_column,
            max_samples=samples,
        )

    normalisation = {"image_mean": tuple(config.image_mean), "image_std": tuple(config.image_std)}
    train_transform = ImageTransform(
        args.image_size,
        train=True,
        crop_scale=tuple(args.crop_scale),
        flip_probability=args.flip_probability,
        **normalisation,
    )
    train_source = source(args.split, args.max_samples, args.streaming)
    kind = StreamingDistillationDataset if args.streaming else DistillationDataset
    train = kind(
        train_source,
        train_transform,
        seed=training.seed,
        cell_grid=config.cell_grid,
        mask_ratio=config.mask_ratio,
        skipped_log=Path(training.output_dir, "skipped.tsv"),
    )
    if args.knn_split is None:
        return train, None, train_source
    transform = ImageTransform(args.image_size, train=False, **normalisation)
    splits = (args.split, args.knn_bank_samples), (args.knn_split, args.knn_query_samples)
    return train, tuple(EvaluationDataset(source(*split), transform) for split in splits), train_source


def describe(args: HGKDArguments, training: DistillationArguments, model: HGKDForPreTraining, source: ImageSource):
    """The start summary: rows of (what, value)."""
    config = model.config
    cells = config.cell_grid[0] * config.cell_grid[1]
    visible = hgkd_hf.masking.num_visible_cells(config.cell_grid, config.mask_ratio)
    encoder, student = model.student.encoder, model.student
    weights, others = encoder.num_parameters() / 1e6, (model.num_parameters() - encoder.num_parameters()) / 1e6
    teacher = "none: pixels alone are predicted (SparK)"
    if config.feature_weight:
        size = "x".join(map(str, config.teacher_image_size))
        layers = ", ".join(map(str, config.teacher_layers))
        teacher = (
            f"{config.teacher_name_or_path}, {model.teacher.num_parameters() / 1e6:.1f} M parameters, "
            f"layers {layers} at {size} px, input {config.teacher_input}"
        )
    images = "streaming" if source.num_rows is None else f"{source.num_rows:,} images"
    return [
        (
            "student",
            f"{type(encoder).__name__} ({args.student}), {weights:.1f} M parameters, stride {student.total_stride}; "
            f"decoder and heads {others:.2g} M",
        ),
        ("teacher", teacher),
        (
            "mask",
            f"{visible} of {cells} cells of {student.config.cell_size} px visible (mask ratio {config.mask_ratio})",
        ),
        (
            "objective",
            f"feature {config.feature_weight} ({config.loss}, {config.positions}), pixel {config.pixel_weight}",
        ),
        ("data", f"{source.name}, split {source.split}, {images}, {args.image_size} px"),
        (
            "training",
            f"{training.images_per_step} images a step on {training.world_size} process(es), "
            f"learning rate {training.learning_rate:.2e}",
        ),
    ]


def main(arguments: list[str] | None = None) -> dict:
    args, training = parse_recipe((HGKDArguments, DistillationArguments), arguments, __doc__)
    set_seed(training.seed)
    model = build_model(args)
    train, knn_datasets, source = build_datasets(args, training, model.config)
    checkpoint = find_checkpoint(args, training)
    config = model.config
    processor = student_image_processor(config.image_size, config.image_mean, config.image_std)
    trainer = DistillationTrainer(model, training, train, knn_datasets, processor)

    rows = describe(args, training, model, source)
    run = Path(training.output_dir)
    if trainer.is_world_process_zero():
        run.mkdir(parents=True, exist_ok=True)
        settings = asdict(args) | {k: v for k, v in training.to_dict().items() if v is not None}
        (run / "recipe.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        print("\n".join(f"{name:>10}: {value}" for name, value in rows), flush=True)

    summary = {"student": rows[0][1], "teacher": rows[1][1], "seed": training.seed}
    if knn_datasets is not None and checkpoint is None:
        summary["before"] = trainer.evaluate(metric_key_prefix="before")
    start = time.perf_counter()
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    summary |= {"train_loss": trained.training_loss, "steps": trained.global_step}
    summary["train_seconds"] = round(time.perf_counter() - start, 1)
    if knn_datasets is not None:
        summary["after"] = trainer.evaluate(metric_key_prefix="after")
    summary["images_skipped"] = train.num_skipped
    trainer.save_model()
    if trainer.is_world_process_zero():
        finish(run, args, training, trainer, summary, rows)
    return summary


def find_checkpoint(args: HGKDArguments, training: DistillationArguments) -> str | None:
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


def finish(run: Path, args, training, trainer: DistillationTrainer, summary: dict, rows: list) -> None:
    """Write the student's folder and the summary, and say where everything lies."""
    config = trainer.model.config
    figures = [pair for part in ("before", "after") for pair in summary.get(part, {}).items() if pair[0] != "epoch"]
    card = StudentCard(
        student=dict(rows)["student"],
        teacher=dict(rows)["teacher"] if config.feature_weight else "",
        dataset=args.dataset,
        method="H-GKD" if config.feature_weight else "SparK",
        results=[(name, f"{value:.4g}") for name, value in figures],
        settings=yaml.safe_load((run / "recipe.yaml").read_text()),
        versions={"hgkd_hf": hgkd_hf.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
        | {"Python": platform.python_version()},
        command=shlex.join(["accelerate", "launch", f"training/{Path(__file__).name}", *sys.argv[1:]]),
    )
    readme = card.render()
    student = export_student(trainer.model.student, run / "student", trainer.processing_class, readme)
    best = trainer.state.best_model_checkpoint
    if best is not None and not best.endswith(f"-{trainer.state.global_step}"):
        summary["best"] = {"checkpoint": best, "eval_knn_accuracy": trainer.state.best_metric}
        best_student = HGKDForPreTraining.from_pretrained(best).student
        export_student(best_student, run / "student-best", trainer.processing_class, readme)
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{summary['steps']} steps in {summary['train_seconds']} s, mean loss {summary['train_loss']:.4f}")
    if "after" in summary:
        k, temperature = training.knn_k, training.knn_temperature
        before = f"{summary['before']['before_knn_accuracy']:.4f} before, " if "before" in summary else ""
        print(f"kNN (k {k}, T {temperature}): {before}{summary['after']['after_knn_accuracy']:.4f} after")
    print(f"student: {student}\nmetrics: {run / 'metrics.jsonl'}\nsummary: {run / 'summary.json'}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        sys.exit(f"error: {error}")
