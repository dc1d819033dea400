"""Evaluate a model's frozen features: kNN, linear and few-label probes, rank, similarity to a teacher, places.

    hgkd evaluate --model runs/mine/student --dataset uoft-cs/cifar10 --eval_split test
    hgkd evaluate --model microsoft/resnet-50 --dataset path/to/images --protocols knn linear
    hgkd evaluate --model facebook/dinov2-small --layers 6 8 10 0 -1 --dataset path/to/images --protocols knn
    accelerate launch -m hgkd_hf.cli.evaluate --model runs/mine/student --dataset path/to/images
    hgkd evaluate --model runs/mine/student --dataset path/to/masks --protocols linear-segmentation \\
        --class_names road car --image_size 352 480
    hgkd evaluate --model runs/mine/student --dataset path/to/boxes --protocols linear-boxes --image_size 256 320

Any checkpoint of transformers that gives features of images, any labelled dataset. The output folder gets
results.json, model-index.yaml (for the metadata of a model's README) and, for a dataset of the Hub, .eval_results/.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..finetuning.settings import BOX_FORMATS, BoxFormat
from ..methods.base.command_settings import FrozenFeatures
from ..methods.base.settings import setting
from ..version import __version__
from .errors import run_script
from .output import hush, log_to, show
from .processes import join_processes
from .recipe import parse_recipe

if TYPE_CHECKING:
    from ..evaluation import ProtocolSettings
    from ..evaluation.linear_segmentation import SegmentationProbeSettings

OF_MAPS = ("linear-segmentation", "linear-boxes")


@dataclass(kw_only=True)
class EvaluationArguments(FrozenFeatures):
    """Which model is evaluated, on which images, and how."""

    split: str = setting("train", "Split to look up and to train probes on.")
    eval_split: str = setting("test", "Split to classify.")
    bank_samples: int | None = setting(None, "Use at most so many images of --split.", minimum=1)
    query_samples: int | None = setting(None, "Use at most so many of --eval_split.", minimum=1)

    protocols: list[str] = setting(
        [], f"Some of knn, linear, low-shot, representation; default: all. Or {' or '.join(OF_MAPS)}."
    )
    image_size: list[int] = setting([224], "Pixels of the images: one side, or height and width.", minimum=1)
    crop_fraction: float = setting(1.0, "Share of the resized image that the crop keeps.", above=0, maximum=1)
    knn_k: int = setting(20, "Neighbours.", minimum=1)
    knn_temperature: float = setting(0.07, "Of the neighbours' weights.", above=0)
    shots: list[int] = setting([1, 5, 10], "Labels a class of few-label probes.", minimum=1)
    draws: int = setting(5, "How often few labels are drawn.", minimum=1)
    seed: int = setting(0, "Of the probes' splits and draws.")
    layers: list[int] = setting([], "Of a ViT, by its patch features one by one, as `hgkd distill --teacher_layers`.")
    teacher: str | None = setting(None, "ViT to compare with by CKA, as --teacher of `hgkd distill`.")
    teacher_layer: int = setting(-1, "Of the teacher's patch features.")
    target_column: str | None = setting(None, f"{', '.join(OF_MAPS)}: column of the masks or objects.")
    class_names: list[str] | None = setting(None, f"{', '.join(OF_MAPS)}: names of the classes.")
    ignore_index: int = setting(255, "linear-segmentation: value of mask pixels that do not count.")
    mask_values: list[int] | None = setting(
        None, "linear-segmentation: pixel values of the classes, where not 0, 1, 2, ..."
    )
    box_format: BoxFormat = setting("xywh", f"linear-boxes: of the stored boxes: {', '.join(BOX_FORMATS)}.")
    output_dir: Path = setting(Path("runs/evaluation"), "Where the results go.")


def main(arguments: list[str] | None = None) -> dict[str, float | None]:
    (args,) = parse_recipe((EvaluationArguments,), arguments, __doc__, "evaluate")
    from ..hub import find_source  # here and below, after --help is answered
    from ..hub.evaluation_results import write_evaluation

    measure = evaluate_images
    if of_maps := [protocol for protocol in args.protocols if protocol in OF_MAPS]:
        if len(args.protocols) > 1:
            raise ValueError(
                f"{of_maps[0]} needs other annotations than the other protocols: choose it alone (--protocols)."
            )
        if args.layers:
            raise ValueError(f"{of_maps[0]} reads a ViT's final output: leave --layers out.")
        measure = evaluate_maps
    hush()
    accelerator = join_processes()
    metrics, protocols, settings, used = measure(args)
    if not accelerator.is_main_process:
        return metrics
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
    from ..evaluation.shares import count
    from ..teachers.checkpoint import image_statistics

    settings = ProtocolSettings(args.knn_k, args.knn_temperature, tuple(args.shots), args.draws, args.seed)
    wanted = args.protocols or PROTOCOLS
    if unknown := set(wanted) - set(PROTOCOLS):
        known = ", ".join((*PROTOCOLS, *OF_MAPS))
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
    loading = {"batch_size": args.batch_size, "num_workers": args.num_workers}
    if args.layers:
        vit = {"name": args.model, "layers": args.layers, "revision": args.model_revision}
        banks, queries = (teacher_features(**vit, source=source, transform=transform, **loading) for source in sources)
        suffixes = [f"_layer_{layer}" for layer in args.layers]
    else:
        model = load_frozen_model(args.model, args.model_revision).to(best_device())
        banks, queries = ([image_set_features(model, source, transform, **loading)] for source in sources)
        suffixes = [""]
    teacher = None
    if args.teacher:
        (teacher,) = teacher_features(args.teacher, [args.teacher_layer], sources[1], transform, **loading)
    metrics = {}
    for suffix, bank, asked in zip(suffixes, banks, queries, strict=True):
        found = run_protocols(bank, asked, wanted, settings, teacher, best_device())
        metrics |= {metric + suffix: value for metric, value in found.items()}
    protocols = {name: protocol_of(name, settings) for name in metrics}
    return metrics, protocols, settings, (count(banks[0]), count(queries[0]))


def evaluate_maps(args: EvaluationArguments) -> tuple[dict, dict, SegmentationProbeSettings, tuple[int, int]]:
    """Likewise of the linear probe on maps."""
    from ..evaluation.linear_segmentation import SegmentationProbeSettings
    from ..finetuning.segmentation_probe import BoxProbe, MaskProbe, probe_maps

    kind = BoxProbe if args.protocols == ["linear-boxes"] else MaskProbe
    known = {item.name for item in fields(kind)}
    shared = {name: value for name, value in vars(args).items() if name in known}
    task = kind(**shared, max_samples=args.bank_samples, max_eval_samples=args.query_samples)
    settings = SegmentationProbeSettings(seed=args.seed)
    metrics, used = probe_maps(task, settings, min(args.batch_size, settings.batch_size), args.num_workers)
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
