"""`hgkd teach`, and `hgkd distill --teacher_cache`: from a command line to a student, without the teacher."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features
from PIL import Image
from transformers import ViTConfig, ViTModel

from hgkd_hf.cli import distill, teach
from hgkd_hf.teachers.cache import CacheInfo, TeacherCache

STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT["layer_type"] = "basic"
STEPS, BATCH, IMAGES = 20, 4, 24
VIEWS = -(-STEPS * BATCH // IMAGES)  # so many epochs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """24 images of two classes, 8 to test on, and a ViT."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", IMAGES), ("test", 8)):
        for index in range(count):
            path = folder / "images" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 255, (40, 40, 3), generator=generator)
            Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(folder / "vit")
    return folder


def teach_flags(inputs: Path, output: Path, *words: str, **settings) -> list[str]:
    settings = {
        "dataset": inputs / "images",
        "teacher": inputs / "vit",
        "image_size": 64,
        "teacher_image_size": 64,
        "views": VIEWS,
        "batch_size": BATCH,
        "images_per_shard": 7,
        "output_dir": output,
        **settings,
    }
    return [*(f"--{name}={value}" for name, value in settings.items()), *words]


def distill_flags(inputs: Path, output: Path, *words: str, **settings) -> list[str]:
    settings = {
        "dataset": inputs / "images",
        "student": json.dumps(STUDENT),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "output_dir": output,
        **settings,
    }
    return [*(f"--{name}={value}" for name, value in settings.items() if value is not None), *words]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def caches(inputs, tmp_path_factory) -> dict[str, Path]:
    """A cache of each storage."""
    root = tmp_path_factory.mktemp("caches")
    for storage in ("float32", "int8"):
        teach.main(teach_flags(inputs, root / storage, storage=storage))
    return {storage: root / storage for storage in ("float32", "int8")}


@pytest.fixture(scope="module")
def live(inputs, tmp_path_factory) -> list[float]:
    """The losses of training with the teacher."""
    run = tmp_path_factory.mktemp("runs") / "live"
    settings = {"teacher": inputs / "vit", "image_size": 64, "teacher_image_size": 64, "decoder_width": 32}
    distill.main(distill_flags(inputs, run, **settings))
    return losses(run)


def test_training_from_the_cache_is_training_with_the_teacher(inputs, caches, live, tmp_path):
    """To 1e-5 over 20 steps in float32; the teacher is not there."""
    hidden = inputs / "hidden"
    (inputs / "vit").rename(hidden)
    try:
        distill.main(
            distill_flags(
                inputs, tmp_path / "run", teacher_cache=caches["float32"], decoder_width=32, knn_split="test"
            )
        )
    finally:
        hidden.rename(inputs / "vit")
    assert len(live) == STEPS
    assert losses(tmp_path / "run") == pytest.approx(live, abs=1e-5)
    settings = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (settings["image_size"], settings["teacher_image_size"], settings["teacher"]) == (64, 64, "./vit")
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "cached in 4 view(s) as float32" in card
    assert str(inputs) not in card
    assert (tmp_path / "run" / "student" / "predictions.png").is_file()


def test_bytes_lose_little(inputs, caches, live, tmp_path):
    distill.main(distill_flags(inputs, tmp_path / "run", teacher_cache=caches["int8"], decoder_width=32))
    assert losses(tmp_path / "run") == pytest.approx(live, rel=0.01)


def test_a_resumed_run_goes_on_alike_wherever_the_cache_lies(inputs, caches, tmp_path):
    settings = {"decoder_width": 32, "max_steps": 9, "save_strategy": "steps", "save_steps": 3}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    distill.main(distill_flags(inputs, whole, teacher_cache=caches["int8"], **settings))
    shutil.copytree(whole, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoint-9")
    shutil.copytree(caches["int8"], moved)
    distill.main(
        distill_flags(
            inputs, tmp_path / "stopped", "--resume", teacher_cache=moved, dataloader_num_workers=2, **settings
        )
    )
    assert losses(tmp_path / "stopped") == losses(whole)
    with pytest.raises(ValueError, match="teacher_cache was '[0-9a-f]{32}', now '[0-9a-f]{32}'"):
        distill.main(
            distill_flags(inputs, tmp_path / "stopped", "--resume", teacher_cache=caches["float32"], **settings)
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "kd", "objective": "hint"},
        {"method": "kd", "objective": "contrastive"},
        {"method": "manifold", "alpha": 0},
        {"method": "msdcrd", "selection": "all"},
    ],
    ids=str,
)
def test_methods_that_read_maps_take_a_cache(settings, inputs, caches, tmp_path):
    assert distill.main(distill_flags(inputs, tmp_path / "run", teacher_cache=caches["int8"], max_steps=2, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 96}, "image_size is 96, but the teacher's cache was written with 64: leave --image_size out"),
        ({"crop_scale": 0.5}, "crop_scale is"),
        ({"flip_probability": 0.1}, "flip_probability is 0.1"),
        ({"teacher": "facebook/dinov2-base"}, "teacher is 'facebook/dinov2-base', but .* './vit'"),
        ({"teacher_layers": 1}, "teacher_layers is"),
        ({"teacher_image_size": 32}, "teacher_image_size is 32"),
        ({"teacher_input": "masked"}, "teacher_input is 'masked'"),
        ({"split": "test"}, "split is 'test'"),
        ({"max_samples": 12}, "max_samples is 12|12 images"),
        ({"streaming": True, "max_steps": 2}, "--streaming"),
        ({"method": "rob"}, "RoB .*--teacher_cache"),
        ({"method": "kd"}, "has no classifier"),
        ({"method": "manifold"}, "has no classifier"),
        ({"method": "msdcrd", "selection": "consistent"}, "cannot classify regions"),
        ({"method": "kd", "objective": "hint", "mixup": 0.2}, "--mixup"),
        ({"method": "kd", "objective": "hint", "color_jitter": 0.2}, "color_jitter is 0.2"),
        ({"color_jitter": 0.2}, "color_jitter is 0.2"),
        ({"color_distortion": 0.5}, "color_distortion is 0.5, but the teacher of --teacher_cache saw images without"),
        ({"blur_probability": 0.5}, "blur_probability is 0.5, but the teacher of --teacher_cache"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_contradicts_the_cache_is_refused_by_name(settings, words, inputs, caches, tmp_path):
    with pytest.raises(ValueError, match=words):
        distill.main(distill_flags(inputs, tmp_path / "run", teacher_cache=caches["int8"], **settings))
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock"}


def test_a_recipe_that_contradicts_the_cache_is_refused(inputs, caches, tmp_path):
    (tmp_path / "recipe.yaml").write_text("image_size: 96\n")
    with pytest.raises(ValueError, match="image_size is 96"):
        distill.main(
            distill_flags(inputs, tmp_path / "run", teacher_cache=caches["int8"], recipe=tmp_path / "recipe.yaml")
        )


def test_other_images_are_refused(inputs, caches, tmp_path):
    other = tmp_path / "images"
    shutil.copytree(inputs / "images", other)
    for path in (other / "train").rglob("*.png"):
        Image.new("RGB", (40, 40), "teal").save(path)
    with pytest.raises(ValueError, match="the 24 images of .* are not the 24 of './images'.*--dataset"):
        distill.main(distill_flags(inputs, tmp_path / "run", teacher_cache=caches["int8"], dataset=other))


@pytest.mark.parametrize("label_column", ["label", "other"])
def test_labels_are_the_students(label_column, inputs, tmp_path):
    """Which column holds them is no matter of the cache; images without one are."""
    pictures = [path.read_bytes() for path in sorted((inputs / "images" / "train").rglob("*.png"))]
    columns = {"image": [{"bytes": picture} for picture in pictures], "label": [0, 1] * 12, "other": [0, 1, 2] * 8}
    kinds = {
        "image": datasets.Image(),
        "label": ClassLabel(names=["a", "b"]),
        "other": ClassLabel(names=["x", "y", "z"]),
    }
    (tmp_path / "images").mkdir()
    Dataset.from_dict(columns, Features(kinds)).to_parquet(tmp_path / "images" / "train.parquet")
    teach.main(teach_flags(inputs, tmp_path / "cache", dataset=tmp_path / "images", views=1))
    settings = {"method": "kd", "objective": "hint", "max_steps": 1, "label_column": label_column}
    settings |= {"dataset": tmp_path / "images", "teacher_cache": tmp_path / "cache"}
    distill.main(distill_flags(inputs, tmp_path / "run", **settings))


def test_a_damaged_cache_is_refused_by_the_shard(inputs, caches, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(caches["int8"], folder)
    path = folder / "view-002" / "00001-of-00004" / "data.arrow"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="view-002/00001-of-00004"):
        distill.main(distill_flags(inputs, tmp_path / "run", teacher_cache=folder))
    teach.main(teach_flags(inputs, folder))
    assert contents(folder) == contents(caches["int8"])


def test_dry_run_tells_size_and_time_and_writes_nothing(inputs, caches, tmp_path, capsys):
    said = teach.main(teach_flags(inputs, tmp_path / "cache", "--dry_run"))
    assert not list(tmp_path.iterdir())
    written = sum(path.stat().st_size for path in caches["int8"].rglob("data.arrow"))
    assert 0.5 * written < said["bytes"] < written  # the files' headers come on top
    assert said["bytes"] == VIEWS * said["bytes_per_view"] == VIEWS * IMAGES * (32 * (64 + 2) + 37)
    shown = capsys.readouterr().out
    for text in (
        "./vit, layers 0 at 64x64 px",
        "8 x 8 positions, int8: 2,149 bytes",
        "16 of 16 shards",
        "about 0:00",
    ):
        assert text in shown, text
    before = contents(caches["int8"])
    teach.main(teach_flags(inputs, caches["int8"], "--dry_run", views=VIEWS + 1))
    assert "4 of 20 shards" in capsys.readouterr().out
    assert contents(caches["int8"]) == before


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_whose_precision_is_imitated_is_warned_of(dtype, native, inputs, tmp_path, monkeypatch, caplog):
    """By both commands; on such a processor it takes ten times as long."""
    monkeypatch.setattr("hgkd_hf.training.arguments.has_native_bf16", lambda use_cpu: native)
    teach.main(teach_flags(inputs, tmp_path / "cache", "--dry_run", teacher_dtype=dtype))
    shown = {"teacher": inputs / "vit", "image_size": 64, "teacher_dtype": dtype, "decoder_width": 32}
    distill.main(distill_flags(inputs, tmp_path / "run", "--dry_run", **shown))
    assert caplog.text.count("try --teacher_dtype float32") == 2 * (dtype == "bfloat16" and not native)


def test_pooled_maps(inputs, tmp_path):
    teach.main(teach_flags(inputs, tmp_path / "cache", pooled_grid=4, storage="float32", views=1))
    teach.main(teach_flags(inputs, tmp_path / "all", storage="float32", views=1))
    pooled, whole = (TeacherCache(tmp_path / name).read(5, 0).features for name in ("cache", "all"))
    torch.testing.assert_close(pooled, torch.nn.functional.avg_pool2d(whole, 2))
    distill.main(
        distill_flags(inputs, tmp_path / "run", teacher_cache=tmp_path / "cache", decoder_width=32, max_steps=1)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pooled_grid": 3}, "not a multiple of pooled_grid 3"),
        ({"pooled_grid": 0}, "pooled_grid is 0, but it must be at least 1"),
        ({"views": 0}, "views is 0, but it must be at least 1"),
        ({"teacher": "/nowhere/vit"}, "/nowhere/vit"),
        ({"dataset": "/nowhere/images"}, "/nowhere/images"),
        ({"teacher_layers": 9}, "9"),
        ({"teacher_image_size": 60}, "60"),
        ({"crop_scale": 2}, "crop_scale"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_settings_end_in_a_sentence(settings, words, inputs, tmp_path):
    with pytest.raises((ValueError, OSError), match=words):
        teach.main(teach_flags(inputs, tmp_path / "cache", **settings))
    assert not (tmp_path / "cache").exists()


def test_what_does_not_fit_on_the_disk_is_refused_at_once(inputs, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"needs 0\.206 MB more, but 0\.1 MB are free .*--output_dir.*--views"):
        teach.main(teach_flags(inputs, tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("view-*"))


def test_other_settings_are_refused(inputs, caches):
    for settings, words in (({"seed": 1}, "seed was 42, now 1"), ({"views": 2}, "views was 4, now 2")):
        with pytest.raises(ValueError, match=words):
            teach.main(teach_flags(inputs, caches["int8"], **settings))
    assert CacheInfo.load(caches["int8"]).seed == 42


def test_one_job_at_a_time(inputs, tmp_path):
    script = "import sys; from hgkd_hf.checkpoints.lock import run_lock\n"
    script += "with run_lock(sys.argv[1]): print(1, flush=True); input()"
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"in use by process {other.pid}"):
            teach.main(teach_flags(inputs, tmp_path / "cache"))
        other.communicate(b"\n")
    teach.main(teach_flags(inputs, tmp_path / "cache", views=1))


def test_default_image_size_fits_cells_of_32_pixels(inputs, tmp_path):
    for image_size, expected in ((64, 64), (60, 56)):
        settings = {"image_size": image_size, "teacher_image_size": None, "views": 1}
        flags = [flag for flag in teach_flags(inputs, tmp_path / str(image_size), **settings) if "None" not in flag]
        teach.main(flags)
        assert CacheInfo.load(tmp_path / str(image_size)).teacher_image_size == (expected, expected)
