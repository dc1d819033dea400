"""training/distill.py with every method: what it leaves, that it goes on, and that two processes equal one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

REPOSITORY = Path(__file__).parents[2]
CNN = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
CNN["layer_type"] = "basic"
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 16}
ROB = {"method": "rob", "teacher": "vit", "num_prototypes": 6, "prototype_samples": 16, "head_hidden_size": 24}
ROB |= {"local_crops": 2, "local_crop_size": 32}
VIT_STUDENT = {"student": json.dumps({"model_type": "vit", **VIT})}
MANIFOLD = {"method": "manifold", "teacher": "vit_classifier", "teacher_layers": [1, 2], "student_layers": [1, 3]}

# Those that look across images look across processes here.
RUNS = {
    "rob_dino": ROB,
    "rob_swav": {**ROB, "ssl_method": "swav"},
    "rob_ibot": {**ROB, **VIT_STUDENT, "ssl_method": "ibot"},
    "rob_msn": {**ROB, **VIT_STUDENT, "ssl_method": "msn", "token_drop_ratio": 0.2},
    "manifold": {**MANIFOLD, "alpha": 0.5, "gather": True, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "manifold_vit": {**MANIFOLD, **VIT_STUDENT, "student_layers": [1, 2], "num_samples": 20, "gather": True},
    "msdcrd": {"method": "msdcrd", "teacher": "cnn_classifier", "gather": True, "warmup_batches": 3},
    "reviewkd": {
        "method": "reviewkd",
        "teacher": "cnn_classifier",
        "teacher_layers": [2, 3],
        "student_layers": [2, 3],
        "warmup_share": 0.5,
    },
    "wcord": {"method": "wcord", "teacher": "vit", "gather": True},
    "sskd": {"method": "sskd", "teacher": "cnn_classifier", "gather": True},
    "kd": {"method": "kd", "teacher": "vit_classifier"},
    "dkd": {"method": "kd", "teacher": "cnn_classifier", "objective": "dkd"},
    "hint": {"method": "kd", "teacher": "vit", "objective": "hint"},
    "contrastive": {"method": "kd", "teacher": "vit", "objective": "contrastive", "gather": True},
    "labels": {"method": "kd", "objective": "labels"},
    "tinymim": {"method": "tinymim", "teacher": "vit"},
    "tinymim_vit": {**VIT_STUDENT, "method": "tinymim", "teacher": "vit", "relations": "qq+kk+vv+qk"},
}
# One process runs all of them, since starting one costs more than the few steps.
DRIVER = """
import json, sys
sys.path.insert(0, {training!r})
import distill
from hgkd_hf.cli.errors import leave_processes
for arguments in json.load(open({jobs!r})):
    distill.main(arguments)
leave_processes()
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with images of two classes and a teacher of every kind."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("test", 8)):
        for index in range(count):
            kind = index % 2
            path = folder / "images" / split / "ab"[kind] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 100, (40, 40, 3), generator=generator)
            noise[..., kind] += 150
            Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VIT, image_size=64), add_pooling_layer=False).save_pretrained(folder / "vit")
    ViTForImageClassification(ViTConfig(**VIT, image_size=64, num_labels=2)).save_pretrained(folder / "vit_classifier")
    cnn = ResNetConfig(**{k: v for k, v in CNN.items() if k != "model_type"}, num_labels=2)
    ResNetForImageClassification(cnn).save_pretrained(folder / "cnn_classifier")
    return folder


def flags(inputs: Path, output: Path, **settings) -> list[str]:
    settings = {
        "dataset": inputs / "images",
        "student": json.dumps(CNN),
        "image_size": 64,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "output_dir": output,
        **settings,
    }
    if "teacher" in settings:
        settings["teacher"] = inputs / settings["teacher"]
    words = []
    for name, value in settings.items():
        words += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return words


def run(jobs: list[list[str]], folder: Path, *launcher: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = folder / "driver.py"
    script.write_text(DRIVER.format(training=str(REPOSITORY / "training"), jobs=str(folder / "jobs.json")))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert result.returncode == 0, result.stderr[-3000:]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """Every method, in one process on batches of 8, with a checkpoint half-way and evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {"per_device_train_batch_size": 8, "knn_split": "test", "knn_k": 3, "save_steps": 2}
    settings |= {"save_strategy": "steps", "save_total_limit": 3}
    run([flags(inputs, folder / name, **values, **settings) for name, values in RUNS.items()], folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_leaves(finished, name):
    summary = json.loads((finished / name / "summary.json").read_text())
    assert summary["steps"] == 4
    assert 0 <= summary["after"]["after_knn_accuracy"] <= 1
    labelled = RUNS[name]["method"] not in ("rob", "tinymim")
    assert ("after_accuracy" in summary["after"]) == labelled
    config = json.loads((finished / name / "student" / "config.json").read_text())
    assert config.get("id2label") == ({"0": "a", "1": "b"} if labelled else None)
    assert not (finished / name / "student" / "sparse_unet").exists()
    teacher = 0 if RUNS[name].get("teacher") is None else 1
    assert summary["teacher"].startswith("none") != bool(teacher)


@pytest.mark.parametrize("name", RUNS)
def test_checkpoints_hold_the_student_and_no_teacher(finished, name):
    checkpoint = load_file(finished / name / "checkpoint-2" / "model.safetensors")
    student = load_file(finished / name / "student" / "model.safetensors")
    allowed = (
        "student.",
        "head.",
        "prototypes",
        "feature_mean",
        "feature_std",
        "projector.",
        "batches_seen",
        "hint.",
        "contrastive.",
        "adaptive_block.",
        "review.",
        "critic.",
    )
    assert [key for key in checkpoint if not key.startswith(allowed)] == []
    assert sum(v.numel() for k, v in checkpoint.items() if k.startswith("student.")) - sum(
        v.numel() for v in student.values()
    ) == (VIT["hidden_size"] if name == "rob_ibot" else 0)  # its mask token stays behind


def test_students_load_without_this_package(finished, inputs):
    code = (
        "import sys, json, torch; from transformers import AutoModel, AutoModelForImageClassification, pipeline\n"
        "picture = sys.argv[1]\n"
        "for folder in sys.argv[2:]:\n"
        "    kind = AutoModel if '/rob' in folder or '/tinymim' in folder else AutoModelForImageClassification\n"
        "    model, info = kind.from_pretrained(folder + '/student', output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['unexpected_keys'], (folder, info)\n"
        "    assert model(torch.zeros(1, 3, 64, 64))[0].isfinite().all()\n"
        "    if kind is AutoModel:\n"
        "        assert pipeline('image-feature-extraction', folder + '/student')(picture)\n"
        "    else:\n"
        "        assert pipeline('image-classification', folder + '/student')(picture)[0]['label'] in 'ab'\n"
        "assert 'hgkd_hf' not in sys.modules"
    )
    picture = next((inputs / "images" / "test").rglob("*.png"))
    command = [sys.executable, "-c", code, str(picture), *(str(finished / name) for name in RUNS)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_resumed_run_goes_on_exactly(finished, inputs, tmp_path):
    jobs = []
    for name, values in RUNS.items():
        shutil.copytree(finished / name, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoint-4")
        settings = {"per_device_train_batch_size": 8, "save_steps": 2, "save_strategy": "steps", "resume": True}
        settings |= {"knn_split": "test", "knn_k": 3, "save_total_limit": 3}
        jobs.append(flags(inputs, tmp_path / name, **values, **settings))
    run(jobs, tmp_path / "driver")
    assert {name: losses(tmp_path / name) for name in RUNS} == {name: losses(finished / name) for name in RUNS}
    for name in RUNS:
        weights = [load_file(folder / name / "student" / "model.safetensors") for folder in (tmp_path, finished)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items()), name


def test_two_processes_equal_one(finished, inputs, tmp_path):
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    jobs = [flags(inputs, tmp_path / name, **values) for name, values in RUNS.items()]
    run(jobs, tmp_path / "driver", *launcher.split(), "--main_process_port", "0")
    for name in RUNS:
        assert losses(tmp_path / name) == pytest.approx(losses(finished / name), rel=3e-4), name


@pytest.mark.slow
def test_two_processes_equal_one_over_twenty_steps(inputs, tmp_path):
    """Float errors grow on their way through twenty updates, but stay float errors."""
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    runs = {"hgkd": {"method": "hgkd", "teacher": "vit", "decoder_width": 32}, **RUNS}
    runs["rcmae"] = {"method": "rcmae", "decoder_width": 32, "momentum": 0.9}
    settings = {"max_steps": 20, "learning_rate": 1e-4}
    one = [flags(inputs, tmp_path / "1" / n, **v, **settings, per_device_train_batch_size=8) for n, v in runs.items()]
    two = [flags(inputs, tmp_path / "2" / n, **v, **settings) for n, v in runs.items()]
    run(one, tmp_path / "driver")
    run(two, tmp_path / "driver", *launcher.split(), "--main_process_port", "0")
    for name in runs:
        assert len(losses(tmp_path / "1" / name)) == 20
        assert losses(tmp_path / "2" / name) == pytest.approx(losses(tmp_path / "1" / name), rel=1e-3), name
