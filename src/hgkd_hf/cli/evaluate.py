"""Evaluate a model's frozen features: kNN, linear and few-label probes, rank, similarity to a teacher, segmentation.

    hgkd evaluate --model runs/mine/student --dataset uoft-cs/cifar10 --eval_split test
    hgkd evaluate --model microsoft/resnet-50 --dataset path/to/images --protocols knn linear
    hgkd evaluate --model runs/mine/student --dataset path/to/masks --protocols linear-segmentation \\
        --class_names road car --image_size 352 480

Any checkpoint of transformers that gives features of images, any labelled dataset. The output folder gets
results.json, model-index.yaml (for the metadata of a model's README) and, for a dataset of the Hub, .eval_results/.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..version import __version__
from .errors import run_script
from .output import hush, log_to, show
from .recipe import parse_recipe

if TYPE_CHECKING:
    from ..evaluation import ProtocolSettings
    from ..evaluation.linear_segmentation import SegmentationProbeSettings

SEGMENTATION = "linear-segmentation"


@dataclass
class EvaluationArguments:
    """Which model is evaluated, on which images, and how."""

    model: str = field(metadata={"help": "Folder or Hub id: a run's student/, student/sparse_unet/, any other model."})
    dataset: str = field(metadata={"help": "Hub id or path of labelled images."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset."})
    split: str = field(default="train", metadata={"help": "Split to look up and to train probes on."})
    eval_split: str = field(default="test", metadata={"help": "Split to classify."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where several columns hold images."})
    label_column: str | None = field(default=None, metadata={"help": "Needed where it is not plain."})
    allow_remote_images: bool = field(
        default=False, metadata={"help": "Open images that rows name by a URL or by a path outside of the dataset."}
    )
    bank_samples: int | None = field(default=None, metadata={"help": "Use at most so many images of --split."})
    query_samples: int | None = field(default=None, metadata={"help": "Use at most so many of --eval_split."})

    protocols: list[str] = field(
        default_factory=list,
        metadata={"help": "Some of knn, linear, low-shot, representation; default: all. Or linear-segmentation."},
    )
    image_size: list[int] = field(
        default_factory=lambda: [224], metadata={"help": "Pixels of the images: one side, or height and width."}
    )
    crop_fraction: float = field(default=1.0, metadata={"help": "Share of the resized image that the crop keeps."})
    knn_k: int = field(default=20, metadata={"help": "Neighbours."})
    knn_temperature: float = field(default=0.07, metadata={"help": "Of the neighbours' weights."})
    shots: list[int] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "Labels a class of few-label probes."}
    )
    draws: int = field(default=5, metadata={"help": "How often few labels are drawn."})
    seed: int = field(default=0, metadata={"help": "Of the probes' splits and draws."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "ViT to compare with by CKA, as --teacher of `hgkd distill`."},
    )
    teacher_layer: int = field(default=-1, metadata={"help": "Of the teacher's patch features."})
    target_column: str | None = field(default=None, metadata={"help": "linear-segmentation: column of the masks."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "linear-segmentation: names of the classes."}
    )
    ignore_index: int = field(
        default=255, metadata={"help": "linear-segmentation: value of mask pixels that do not count."}
    )
    mask_values: list[int] | None = field(
        default=None, metadata={"help": "linear-segmentation: pixel values of the classes, where not 0, 1, 2, ..."}
    )
    batch_size: int = field(default=128, metadata={"help": "Images at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    output_dir: Path = field(default=Path("runs/evaluation"), metadata={"help": "Where the results go."})


def main(arguments: list[str] | None = None) -> dict[str, float | None]:
    (args,) = parse_recipe((EvaluationArguments,), arguments, __doc__, "evaluate")
    from ..hub import find_source  # here and below, after --help is answered
    from ..hub.evaluation_results import write_evaluation

    measure = evaluate_images
    if SEGMENTATION in args.protocols:
        if len(args.protocols) > 1:
            raise ValueError(f"{SEGMENTATION} needs masks, the other protocols labels: choose it alone (--protocols).")
        measure = evaluate_segmentation
    hush()
    metrics, protocols, settings, used = measure(args)
    log_to(args.output_dir)
    show(f"{args.model} on {args.dataset}: {used[0]:,} {args.split} and {used[1]:,} {args.eval_split} images\n")
    show("| metric | value | protocol |\n| --- | --- | --- |")
    for name, value in metrics.items():
        show(f"| {name} | {'-' if value is None else f'{value:.4g}'} | {protocols[name]} |")
    results = {
        "model": args.model,
        "dataset": args.dataset,
        "splits": dict(zip((args.split, args.eval_split), used)),
        "image_size": args.image_size,
        "settings": asdict(settings),
        "metrics": metrics,
        "hgkd_hf": __version__,
    }
    source = find_source(args.dataset, "dataset", args.dataset_revision)
    write_evaluation(args.output_dir, results, protocols, source, args.eval_split)
    show(f"\nresults: {args.output_dir}")
    return metrics


def evaluate_images(args: EvaluationArguments) -> tuple[dict, dict, ProtocolSettings, tuple[int, int]]:
    """The metrics of features of whole images, how each was measured, with which settings, and on how many images."""
    from ..data import ImageTransform, bank_and_queries, open_split
    from ..evaluation import PROTOCOLS, ProtocolSettings, best_device, image_set_features, run_protocols
    from ..evaluation.frozen import load_frozen_model, teacher_features
    from ..teachers.checkpoint import image_statistics

    settings = ProtocolSettings(args.knn_k, args.knn_temperature, tuple(args.shots), args.draws, args.seed)
    wanted = args.protocols or PROTOCOLS
    if unknown := set(wanted) - set(PROTOCOLS):
        known = ", ".join((*PROTOCOLS, SEGMENTATION))
        raise ValueError(f"there is no protocol {min(unknown)!r}: choose --protocols from {known}.")
    sources = (
        open_split(args, samples_field="bank_samples"),
        open_split(args, "eval_split", "query_samples"),
    )
    if set(wanted) != {"representation"}:
        sources = bank_and_queries(*sources)
    mean, std = image_statistics(args.model, {"revision": args.model_revision})
    transform = ImageTransform(
        args.image_size if len(args.image_size) > 1 else args.image_size[0],
        train=False,
        crop_fraction=args.crop_fraction,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )
    model = load_frozen_model(args.model, args.model_revision).to(best_device())
    loading = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    bank, queries = (image_set_features(model, source, transform, **loading) for source in sources)
    teacher = None
    if args.teacher:
        teacher = teacher_features(args.teacher, args.teacher_layer, sources[1], transform, **loading)
    metrics = run_protocols(bank, queries, wanted, settings, teacher, best_device())
    protocols = {name: protocol_of(name, settings) for name in metrics}
    return metrics, protocols, settings, (len(bank), len(queries))


def evaluate_segmentation(args: EvaluationArguments) -> tuple[dict, dict, SegmentationProbeSettings, tuple[int, int]]:
    """Likewise of the linear probe on maps."""
    from ..evaluation.linear_segmentation import SegmentationProbeSettings
    from ..finetuning.segmentation import SemanticSegmentation
    from ..finetuning.segmentation_probe import probe_segmentation

    task = SemanticSegmentation(
        args.dataset,
        args.model,
        model_revision=args.model_revision,
        split=args.split,
        eval_split=args.eval_split,
        max_samples=args.bank_samples,
        max_eval_samples=args.query_samples,
        dataset_config=args.dataset_config,
        dataset_revision=args.dataset_revision,
        image_column=args.image_column,
        allow_remote_images=args.allow_remote_images,
        target_column=args.target_column,
        class_names=args.class_names,
        ignore_index=args.ignore_index,
        mask_values=args.mask_values,
        image_size=args.image_size,
    )
    settings = SegmentationProbeSettings(seed=args.seed)
    metrics, used = probe_segmentation(task, settings, min(args.batch_size, settings.batch_size), args.num_workers)
    how = f"linear probe on frozen maps, {settings.epochs} epochs, seed {settings.seed}"
    return metrics, dict.fromkeys(metrics, how), settings, used


def protocol_of(metric: str, settings: ProtocolSettings) -> str:
    """How a metric was measured."""
    if metric.startswith("knn"):
        return f"weighted kNN, k {settings.knn_k}, temperature {settings.knn_temperature}"
    if metric.startswith("linear"):
        return f"logistic regression, L-BFGS, strength chosen on a tenth of the training images, seed {settings.seed}"
    if "_shot_" in metric:
        return f"logistic regression on {metric.split('_')[0]} labels a class, {settings.draws} draws"
    return "frozen features of the evaluation split"


if __name__ == "__main__":
    run_script(main)
