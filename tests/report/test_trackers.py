"""Trackers get named terms, speed and pictures of before, while and after the training; one that fails is left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hgkd_hf.data import DistillationDataset, EvaluationDataset, ImageTransform, load_images
from hgkd_hf.report import ReportCallback, callback
from hgkd_hf.training.callbacks import CollapseWarning
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

pytest.importorskip("matplotlib", reason="needs the extra `demo`")
SCALARS = {"train/feature_loss", "train/images_per_second", "train/data_wait_share", "eval/knn_accuracy"}
PICTURES = {"eval/predictions", "eval/most-alike"}


def trained(hgkd, run: Path, **settings) -> None:
    """After two steps, each with an evaluation, one before and one after, as training/distill.py does."""
    for index in range(8):
        path = run.parent / "images/train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 30 * index, np.uint8)).save(path)
    source = load_images(run.parent / "images")
    transform = ImageTransform(64, train=True)
    data = DistillationDataset(
        source, transform, seed=0, cell_grid=hgkd.config.cell_grid, mask_ratio=hgkd.config.mask_ratio
    )
    labelled = EvaluationDataset(source, ImageTransform(64, train=False))
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "logging_steps": 1, "max_steps": 2}
    arguments = DistillationArguments(run, per_device_train_batch_size=4, **settings)
    trainer = DistillationTrainer(hgkd, arguments, data, (labelled, labelled))
    trainer.add_callback(ReportCallback(trainer))
    trainer.evaluate(metric_key_prefix="before")
    trainer.train()
    trainer.evaluate(metric_key_prefix="after")


def test_tensorboard(hgkd, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra `trackers`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trained(hgkd, tmp_path / "run", report_to="tensorboard")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents*")}
    assert folder == tmp_path / "run/tensorboard"
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["scalars"]) > SCALARS | {"train/before_knn_accuracy", "train/after_knn_accuracy"}
    assert set(events.Tags()["images"]) == PICTURES
    assert [event.step for event in events.Images("eval/predictions")] == [0, 1, 2, 2]
    assert events.Images("eval/predictions")[0].height > 100


def test_wandb(hgkd, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra `trackers`")
    for name, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trained(hgkd, tmp_path / "my-run", report_to="wandb")
    assert wandb.run.name == "my-run"
    assert set(wandb.run.summary.keys()) > SCALARS | PICTURES
    wandb.finish()
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media/images/eval")
    assert len(list(media.glob("predictions_*.png"))) == 4


def test_trackio(hgkd, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at the import
    trackio = pytest.importorskip("trackio", reason="needs the extra `trackers`")
    from trackio.sqlite_storage import SQLiteStorage

    trained(hgkd, tmp_path / "my-run", report_to="trackio", project="tests")
    trackio.finish()
    (run,) = trackio.Api().runs("tests")
    logs = SQLiteStorage.get_logs("tests", run.name)
    assert run.name == "my-run"
    assert set().union(*logs) > SCALARS | PICTURES | {"train/before_knn_accuracy", "train/after_knn_accuracy"}
    drawn = {log["train/global_step"]: log["eval/predictions"]["file_path"] for log in logs if log.keys() >= PICTURES}
    assert list(drawn) == [0, 1, 2]
    assert all((tmp_path / "trackio/media" / path).is_file() for path in drawn.values())


def test_without_trackers_pictures_and_report_are_in_the_runs_folder(hgkd, tmp_path, monkeypatch):
    """And a tracker that failed would cost neither the run nor the others."""
    got = []

    def log_pictures(tracker, pictures, step):
        if isinstance(tracker, CollapseWarning):
            raise OSError("no space left")
        got.append((type(tracker).__name__, step))
        assert pictures.keys() == PICTURES

    monkeypatch.setattr(callback, "log_pictures", log_pictures)
    run = tmp_path / "run"
    trained(hgkd, run)
    assert {path.name for path in (run / "pictures").iterdir()} == {
        f"{kind}-{step:06d}.png" for kind in ("predictions", "most-alike") for step in (0, 1, 2)
    }
    assert "Predictions, step 2" in (run / "report.html").read_text()
    assert {("DatasetEpoch", 2), ("MetricsFile", 2)} <= set(got), "those before and after the one that fails"
