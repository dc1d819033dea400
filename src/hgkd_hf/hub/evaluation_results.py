"""The metrics of an evaluation, as files: JSON, and the two forms that the Hub reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from .sources import Source


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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    accuracies = {name: value for name, value in results["metrics"].items() if name.endswith("_accuracy")}
    if not accuracies:
        return
    entries = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset.name,
            dataset_name=dataset.name,
            dataset_split=split,
            dataset_revision=dataset.revision,
            metric_type="accuracy",
            metric_name=name.replace("_", " "),
            metric_value=value,
            metric_args={"protocol": protocols[name]},
        )
        for name, value in accuracies.items()
    ]
    index = yaml_dump({"model-index": eval_results_to_model_index(Path(results["model"]).name, entries)})
    (folder / "model-index.yaml").write_text(index, encoding="utf-8")
    if dataset.on_hub:
        name, value = next(iter(accuracies.items()))
        entry = EvalResultEntry(
            dataset_id=dataset.name,
            task_id="default",
            value=value,
            dataset_revision=dataset.revision,
            notes=f"{name}: {protocols[name]}",
        )
        (folder / ".eval_results").mkdir(exist_ok=True)
        text = yaml_dump(eval_result_entries_to_yaml([entry]))
        (folder / ".eval_results" / f"{dataset.name.split('/')[-1]}.yaml").write_text(text, encoding="utf-8")
