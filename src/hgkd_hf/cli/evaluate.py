"""Evaluate a model's frozen features: kNN, linear and few-label probes, rank, similarity to a teacher.

    hgkd evaluate --model runs/mine/student --dataset uoft-cs/cifar10 --eval_split test
    hgkd evaluate --model microsoft/resnet-50 --dataset path/to/images --protocols knn linear

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
        default_factory=list, metadata={"help": "Some of knn, linear, low-shot, representation; default: all."}
    )
    image_size: int = field(default=224, metadata={"help": "Pixels of the side of the images."})
    crop_fraction: float = field(default=1.0, metadata={"help": "Share of the resized image that the crop keeps."})
    knn_k: int = field(default=20, metadata={"help": "Neighbours."})
    knn_temperature: float = field(default=0.07, metadata={"help": "Of the neighbours' weights."})
    shots: list[int] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "Labels a class of few-label probes."}
    )
    draws: int = field(default=5, metadata={"help": "How often few labels are drawn."})
    seed: int = field(default=0, metadata={"help": "Of the probes' splits and draws."})
    teacher: str | None = field(default=None, metadata={"help": "ViT to compare with by CKA: Hub id or folder."})
    teacher_layer: int = field(default=-1, metadata={"help": "Of the teacher's patch features."})
    batch_size: int = field(default=128, metadata={"help": "Images at a time."})
    num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    output_dir: Path = field(default=Path("runs/evaluation"), metadata={"help": "Where the results go."})


def main(arguments: list[str] | None = None) -> dict[str, float]:
    (args,) = parse_recipe((EvaluationArguments,), arguments, __doc__, "evaluate")
    from ..data import ImageTransform, bank_and_queries, open_split  # here, after --help is answered
    from ..evaluation import PROTOCOLS, ProtocolSettings, best_device, image_set_features, run_protocols
    from ..evaluation.frozen import load_frozen_model, teacher_features
    from ..hub import find_source
    from ..hub.evaluation_results import write_evaluation
    from ..teachers.checkpoint import image_statistics

    hush()
    settings = ProtocolSettings(args.knn_k, args.knn_temperature, tuple(args.shots), args.draws, args.seed)
    wanted = args.protocols or PROTOCOLS
    if unknown := set(wanted) - set(PROTOCOLS):
        raise ValueError(f"there is no protocol {min(unknown)!r}: choose --protocols from {', '.join(PROTOCOLS)}.")
    sources = (
        open_split(args, samples_field="bank_samples"),
        open_split(args, "eval_split", "query_samples"),
    )
    if set(wanted) != {"representation"}:
        sources = bank_and_queries(*sources)
    mean, std = image_statistics(args.model, {"revision": args.model_revision})
    transform = ImageTransform(
        args.image_size,
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
    metrics = run_protocols(bank, queries, wanted, settings, teacher)
    protocols = {name: protocol_of(name, settings) for name in metrics}
    log_to(args.output_dir)
    show(f"{args.model} on {args.dataset}: {len(bank):,} {args.split} and {len(queries):,} {args.eval_split} images\n")
    show("| metric | value | protocol |\n| --- | --- | --- |")
    for name, value in metrics.items():
        show(f"| {name} | {value:.4g} | {protocols[name]} |")
    results = {
        "model": args.model,
        "dataset": args.dataset,
        "splits": {args.split: len(bank), args.eval_split: len(queries)},
        "image_size": args.image_size,
        "settings": asdict(settings),
        "metrics": metrics,
        "hgkd_hf": __version__,
    }
    source = find_source(args.dataset, "dataset", args.dataset_revision)
    write_evaluation(args.output_dir, results, protocols, source, args.eval_split)
    show(f"\nresults: {args.output_dir}")
    return metrics


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
