"""How good a model's frozen features are: kNN, linear and few-label probes, rank, similarity to a teacher.

    python training/evaluate.py --model runs/mine/student --dataset uoft-cs/cifar10 --eval_split test
    python training/evaluate.py --model microsoft/resnet-50 --dataset path/to/images --protocols knn linear

Any checkpoint of transformers that gives features of images, any labelled dataset. The output folder gets
results.json, model-index.yaml (for the metadata of a model's README) and, for a dataset of the Hub, .eval_results/.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    eval_result_entries_to_yaml,
)
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModel

import hgkd_hf

from .. import PatchTeacher
from ..data import EvaluationDataset, ImageSource, ImageTransform, collate, load_images
from ..evaluation import (
    PROTOCOLS,
    Features,
    ProtocolSettings,
    best_device,
    extract_features,
    image_set_features,
    run_protocols,
)
from ..hub import find_source
from ..teachers.checkpoint import image_statistics
from .errors import run_script
from .recipe import parse_recipe


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
    bank_samples: int | None = field(default=None, metadata={"help": "Use at most so many images of --split."})
    query_samples: int | None = field(default=None, metadata={"help": "Use at most so many of --eval_split."})

    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS), metadata={"help": " ".join(PROTOCOLS)})
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


def load_model(name: str, revision: str | None) -> nn.Module:
    """The model whose pooled output is evaluated; of a whole student its encoder.

    Raises:
        ValueError: the checkpoint lacks weights that the features depend on.
    """
    model, loading = AutoModel.from_pretrained(
        name, revision=revision, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    missing = {key for key in loading["missing_keys"] if not key.startswith("pooler.")}
    if missing:
        raise ValueError(f"checkpoint {name!r} lacks {min(missing)}: its features would be random (--model).")
    if missing != set(loading["missing_keys"]):
        model.pooler = None  # a random layer above the class token: pooled_features takes the mean of the tokens
    model = getattr(model, "vision_model", model)
    return (model.encoder if model.config.model_type == "sparse_unet" else model).eval()


def open_split(args: EvaluationArguments, split: str, samples: int | None) -> ImageSource:
    return load_images(
        args.dataset,
        split=split,
        config_name=args.dataset_config,
        revision=args.dataset_revision,
        image_column=args.image_column,
        label_column=args.label_column,
        max_samples=samples,
    )


def teacher_features(args: EvaluationArguments, queries: ImageSource, transform: ImageTransform) -> Features:
    """The teacher's pooled patch features of the queries."""
    patch = PatchTeacher.patch_size_of(args.teacher)
    side = max(1, round(args.image_size / patch)) * patch
    teacher = PatchTeacher.from_pretrained(args.teacher, layers=(args.teacher_layer,), image_size=side)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (transform.image_mean, transform.image_std))
    loader = DataLoader(
        EvaluationDataset(queries, transform), args.batch_size, collate_fn=collate, num_workers=args.num_workers
    )
    device = best_device()
    mean, std, teacher = mean.to(device), std.to(device), teacher.to(device)
    return extract_features(lambda pixels: teacher((pixels * std + mean).clamp(0, 1)).pooled, loader, device)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    (args,) = parse_recipe((EvaluationArguments,), arguments, __doc__)
    settings = ProtocolSettings(args.knn_k, args.knn_temperature, tuple(args.shots), args.draws, args.seed)
    unknown = set(args.protocols) - set(PROTOCOLS)
    if unknown:
        raise ValueError(f"there is no protocol {min(unknown)!r}: choose --protocols from {', '.join(PROTOCOLS)}.")
    bank_source = open_split(args, args.split, args.bank_samples)
    query_source = open_split(args, args.eval_split, args.query_samples)
    mean, std = image_statistics(args.model, {"revision": args.model_revision})
    transform = ImageTransform(
        args.image_size,
        train=False,
        crop_fraction=args.crop_fraction,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )
    model = load_model(args.model, args.model_revision).to(best_device())
    extract = partial(image_set_features, model, transform=transform)
    bank, queries = (
        extract(source, batch_size=args.batch_size, num_workers=args.num_workers)
        for source in (bank_source, query_source)
    )
    teacher = teacher_features(args, query_source, transform) if args.teacher else None
    figures = run_protocols(bank, queries, args.protocols, settings, teacher)
    write_results(args, settings, figures, len(bank), len(queries))
    return figures


def protocol_of(figure: str, settings: ProtocolSettings) -> str:
    """What a figure depends on, in words."""
    if figure.startswith("knn"):
        return f"weighted kNN, k {settings.knn_k}, temperature {settings.knn_temperature}"
    if figure.startswith("linear"):
        return f"logistic regression, L-BFGS, strength chosen on a tenth of the training images, seed {settings.seed}"
    if "_shot_" in figure:
        return f"logistic regression on {figure.split('_')[0]} labels a class, {settings.draws} draws"
    return "frozen features of the evaluation split"


def write_results(
    args: EvaluationArguments, settings: ProtocolSettings, figures: dict[str, float], bank: int, queries: int
) -> None:
    """Print the table; write the figures as JSON and in the Hub's two forms."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    source, name = find_source(args.dataset, "dataset", args.dataset_revision), Path(args.model).name
    print(f"{args.model} on {args.dataset}: {bank:,} {args.split} and {queries:,} {args.eval_split} images\n")
    print("| figure | value | protocol |\n| --- | --- | --- |")
    for figure, value in figures.items():
        print(f"| {figure} | {value:.4g} | {protocol_of(figure, settings)} |")
    results = {
        "model": args.model,
        "dataset": args.dataset,
        "splits": {args.split: bank, args.eval_split: queries},
        "image_size": args.image_size,
        "settings": asdict(settings),
        "figures": figures,
        "hgkd_hf": hgkd_hf.__version__,
    }
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    accuracies = {figure: value for figure, value in figures.items() if figure.endswith("_accuracy")}
    if not accuracies:
        return
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=source.name,
            dataset_name=source.name,
            dataset_split=args.eval_split,
            dataset_revision=source.revision,
            metric_type="accuracy",
            metric_name=figure.replace("_", " "),
            metric_value=value,
            metric_args={"protocol": protocol_of(figure, settings)},
        )
        for figure, value in accuracies.items()
    ]
    index = yaml_dump({"model-index": eval_results_to_model_index(name, entries)})
    (args.output_dir / "model-index.yaml").write_text(index, encoding="utf-8")
    if source.on_hub:
        figure, value = next(iter(accuracies.items()))
        entry = EvalResultEntry(
            dataset_id=source.name,
            task_id="default",
            value=value,
            dataset_revision=source.revision,
            notes=f"{figure}: {protocol_of(figure, settings)}",
        )
        folder = args.output_dir / ".eval_results"
        folder.mkdir(exist_ok=True)
        text = yaml_dump(eval_result_entries_to_yaml([entry]))
        (folder / f"{source.name.split('/')[-1]}.yaml").write_text(text, encoding="utf-8")
    print(f"\nresults: {args.output_dir}")


if __name__ == "__main__":
    run_script(main)
