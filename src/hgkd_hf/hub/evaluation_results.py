"""The metrics of an evaluation, as files: JSON, and the two forms that the Hub reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from . import readme
from .sources import Source


def eval_result(
    dataset: Source, split: str | None, name: str, value: float, protocol: str | None = None, **kinds: str
) -> EvalResult:
    """A metric for the metadata of a README; `kinds` are the Hub's names of task and metric."""
    return EvalResult(
        dataset_type=dataset.name,
        dataset_name=dataset.name,
        dataset_split=split,
        dataset_revision=dataset.revision,
        metric_name=name,
        metric_value=value,
        metric_args={"protocol": protocol} if protocol else None,
        **kinds,
    )


def result_files(dataset: Source, best: EvalResult) -> dict[str, str]:
    """`.eval_results/*.yaml` of one metric for the leaderboard of a dataset of the Hub; none for other datasets."""
    if not dataset.on_hub:
        return {}
    protocol = (best.metric_args or {}).get("protocol")
    entry = EvalResultEntry(
        dataset_id=dataset.name,
        task_id="default",
        value=best.metric_value,
        dataset_revision=dataset.revision,
        notes=f"{best.metric_name}: {protocol}" if protocol else best.metric_name,
    )
    return {f".eval_results/{dataset.name.split('/')[-1]}.yaml": readme.to_yaml(eval_result_entries_to_yaml([entry]))}


def write_evaluation(
    folder: Path, results: dict[str, Any], protocols: dict[str, str], dataset: Source, split: str
) -> None:
    """Write `results.json`; `model-index.yaml` for a README's metadata; for a dataset of the Hub, `.eval_results/`.

    Args:
        folder: made if there is none.
        results: what `results.json` holds; `model` and `metrics` (by name) are needed, accuracies end in `_accuracy`.
        protocols: how each metric was measured.
        dataset: where the images come from.
        split: which of its splits was classified.
    """
    kinds = {"task_type": "image-classification", "metric_type": "accuracy"}
    found = [
        eval_result(dataset, split, name.replace("_", " "), value, protocols[name], **kinds)
        for name, value in results["metrics"].items()
        if name.endswith("_accuracy")
    ]
    texts = {"results.json": json.dumps(results, indent=2) + "\n"}
    if found:
        index = eval_results_to_model_index(Path(results["model"]).name, found)
        texts |= {"model-index.yaml": readme.to_yaml({"model-index": index})} | result_files(dataset, found[0])
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
