"""training/distill.py as users run it: as a command, on a folder of images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from PIL import Image
from transformers import AutoModel, ViTConfig, ViTModel

from hgkd_hf.cli.distill import main
from hgkd_hf.cli.errors import run_script

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "training" / "distill.py"
STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT["layer_type"] = "basic"


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """An imagefolder: 24 + 8 pictures of two classes."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 24), ("test", 8)):
        for index in range(count):
            kind = index % 2
            path = folder / split / "ab"[kind] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 100, (40, 40, 3), generator=generator)
            noise[..., kind] += 150
            Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
    assert load_dataset(str(folder), split="test").num_rows == 8
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def flags(images: Path, output: Path, **settings) -> list[str]:
    settings = {
        "dataset": images,
        "student": json.dumps(STUDENT),
        "decoder_width": 32,
        "image_size": 64,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": output,
        **settings,
    }
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def launch(arguments: list[str], *launcher: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_run_from_folder_to_student(images, teacher_folder, tmp_path):
    run = tmp_path / "run"
    teacher = {"teacher": teacher_folder, "teacher_layers": 1}
    arguments = flags(images, run, **teacher, decoder="truncated", knn_split="test", knn_k=3)
    result = launch(arguments, "-m", "accelerate.commands.launch", "--cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    for text in (
        "none: the student sees the whole image",
        "ResNetModel",
        "layers 1 at 64x64 px",
        "24 images",
        "kNN (k 3",
    ):
        assert text in result.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert 0 <= summary["after"]["after_knn_accuracy"] <= 1
    entry = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])
    assert entry["feature_loss"] == pytest.approx(entry["loss"], rel=1e-4)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["teacher"] == str(teacher_folder)
    assert not list(run.rglob("*.bin"))

    # In a process that never imports this package.
    code = (
        "import sys, torch; from transformers import AutoModel, AutoModelForImageClassification, pipeline\n"
        "model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "head, info = AutoModelForImageClassification.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert all('classifier' in key for key in info['missing_keys']) and not info['unexpected_keys'], info\n"
        "features = pipeline('image-feature-extraction', sys.argv[1])(sys.argv[2])\n"
        "assert torch.tensor(features).shape == (1, 32, 4, 4)\n"
        "pixels = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)\n"
        "torch.save(model.eval()(pixels).last_hidden_state, sys.argv[3])\n"
        "assert 'hgkd_hf' not in sys.modules"
    )
    picture = next((images / "test").rglob("*.png"))
    saved = tmp_path / "features.pt"
    loaded = subprocess.run(
        [sys.executable, "-c", code, run / "student", picture, saved], capture_output=True, text=True, timeout=200
    )
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    whole = AutoModel.from_pretrained(run / "student" / "sparse_unet").eval()
    pixels = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    maps = whole(pixels, output_hidden_states=True).feature_maps
    assert torch.equal(torch.load(saved, weights_only=True), maps[-1])


@pytest.mark.parametrize("mask_ratio", [0.0, 0.6])
def test_two_processes_equal_one(images, teacher_folder, tmp_path, mask_ratio):
    """Same samples, and within float error the same losses; BatchNorm statistics are shared, of whole images too."""
    common = {"teacher": teacher_folder, "max_steps": 5, "mask_ratio": mask_ratio}
    main(flags(images, tmp_path / "one", per_device_train_batch_size=8, **common))
    # On CPUs too, --multi_gpu is what makes `accelerate launch` start several processes.
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    two = launch(flags(images, tmp_path / "two", **common), *launcher.split(), "--main_process_port", "0")
    assert two.returncode == 0, two.stderr[-3000:]
    assert "8 images a step on 2 process(es)" in two.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "TEXT"}, "bert model, but `teacher` must be a vision transformer"),
        ({"student": "TEACHER"}, "student model type 'vit' gives no feature maps at several scales"),
        ({"image_size": 60}, "image_size 60 is not a multiple of the 16-pixel mask cells: set image_size to 48 or 64"),
        ({"mask_ratio": 1}, "mask_ratio is 1.0, but it must be at least 0 and below 1"),
        ({"mask_ratio": 0.99}, "leaves none of the 4x4 cells visible: lower mask_ratio to 0.938"),
        ({"dataset": "EMPTY"}, "empty"),
        ({"image_column": "picture"}, "'picture'"),
        ({"knn_split": "validation"}, "validation"),
        ({"teacher": None}, "there is no teacher: name one with --teacher"),
        ({"resume": True}, "--resume: there is no checkpoint in"),
        ({"recipe": "RECIPE"}, "has the key 'mask_ration', which no setting reads: did you mean 'mask_ratio'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence_before_work(settings, message, images, teacher_folder, tmp_path, monkeypatch):
    from transformers import BertConfig

    special = {"TEACHER": teacher_folder, "TEXT": tmp_path / "text", "EMPTY": tmp_path / "empty"}
    special["RECIPE"] = tmp_path / "recipe.yaml"
    special["RECIPE"].write_text("mask_ration: 0.5\n")
    special["EMPTY"].mkdir()
    BertConfig(architectures=["BertModel"]).save_pretrained(special["TEXT"])
    settings = {name: special.get(value, value) for name, value in settings.items()}
    with pytest.raises(SystemExit) as ended:
        run_script(main, flags(images, tmp_path / "run", **{"teacher": teacher_folder, **settings}))
    assert ended.value.code.startswith("error: ")
    assert message in ended.value.code
    assert "\n" not in ended.value.code
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_the_process_ends_with_that_sentence(images, tmp_path):
    result = launch(flags(images, tmp_path / "run", image_size=60, teacher=tmp_path / "nowhere"))
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
