"""A run's folder as training leaves it."""

import json
from pathlib import Path

import pytest
import yaml

STEPS = 40


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of 40 steps with two evaluations; no model."""
    run = tmp_path / "my run"
    run.mkdir()
    entries = [{"step": 0, "before_knn_accuracy": 0.3, "before_feature_rank": 60.0, "epoch": 0}]
    for step in range(1, STEPS + 1):
        loss = 0.25 / step + 0.1
        terms = {"feature_loss": loss - 0.05, "pixel_loss": 0.05, "target_entropy": 3.0}
        speed = {"learning_rate": 1e-3, "grad_norm": 0.5, "images_per_second": 30.0}
        entries.append({"step": step, "loss": loss, **terms, **speed, "epoch": step / 100})
        if step % 20 == 0:
            entries.append({"step": step, "eval_knn_accuracy": 0.3 + step / 400, "eval_feature_rank": 40.0})
    entries.append({"step": STEPS, "after_knn_accuracy": 0.41, "after_feature_rank": 39.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    settings = {"student": "resnet-18", "teacher": "/home/somebody/private/vit", "max_steps": STEPS, "resume": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))
    summary = {"method": "H-GKD", "student": "ResNetModel </script><b>", "teacher": "/home/somebody/private/vit"}
    (run / "summary.json").write_text(json.dumps(summary | {"seed": 0, "train_seconds": 12.5}))
    return run
