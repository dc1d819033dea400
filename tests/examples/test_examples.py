"""The short examples run, at toy size and in processes of their own, and leave what they promise."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
HELPERS = {"digits.py", "scenes.py"}
LONGER = {"quickstart.py", "demo_app.py"}
STUDENT = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 32, 32]}
STUDENT["depths"] = [1, 1, 1]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
# One process runs several: starting costs more than running.
DRIVER = """
import json, runpy, sys
examples, runs = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, examples)
for name, flags in runs:
    sys.argv[1:] = flags
    runpy.run_path(f"{examples}/{name}.py", run_name="__main__")
"""


def start(*command: str, folder: Path) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env={**os.environ, **ENVIRONMENT}, **options)


def finish(process: subprocess.Popen) -> str:
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return output


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a tiny teacher, and images as files and as four parquet files."""
    world = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(world / "vit")
    ViTImageProcessorPil().save_pretrained(world / "vit")
    (world / "images").mkdir()
    pictures = [PILImage.new("RGB", (64, 64), (30 * number, 100, 200)) for number in range(8)]
    for number, picture in enumerate(pictures):
        picture.save(world / f"images/{number}.png")
    table = Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
    (world / "stream").mkdir()
    for shard in range(4):
        table.shard(4, shard).to_parquet(world / f"stream/train-{shard}.parquet")
    return world


@pytest.fixture(scope="module")
def finished(world) -> Path:
    """The folder, after a student was distilled from it, and fine-tuned."""
    pytest.importorskip("mlxtend", reason="needs the extra `demo`")
    sizes = ["--student", json.dumps(STUDENT), "--image_size=64", "--batch_size=4", "--steps=2"]
    runs = [
        ("distil_folder", ["images", "--teacher=vit", "--output_dir=run", *sizes]),
        ("segment", ["--student=run/student/sparse_unet", "--output_dir=segment", "--steps=1"]),
        ("own_teacher", ["--output_dir=own_teacher", "--steps=1"]),
        ("own_cnn", ["--output_dir=own_cnn", "--steps=1"]),
    ]
    output = finish(start("-c", DRIVER, str(EXAMPLES), json.dumps(runs), folder=world))
    for line in ("student: run/student", "model: segment/model", "own_teacher/student", "own_cnn/student"):
        assert line in output
    return world


def test_student_is_loaded_without_this_package(finished):
    """As where it is not installed: importing it fails."""
    hidden = "import sys; sys.modules['hgkd_hf'] = None; " + DRIVER
    runs = [("load_student", ["images/0.png", "images/7.png", "--student=run/student"])]
    output = finish(start("-c", hidden, str(EXAMPLES), json.dumps(runs), folder=finished))
    assert "ResNetModel: maps of (16, 16, 16), (16, 16, 16), (32, 8, 8), (32, 4, 4), features of 32" in output
    assert " 1.000  images/0.png" in output
    assert load_file(finished / "features.safetensors")["features"].shape == (2, 32)


def test_segmenter_is_a_checkpoint_of_its_auto_class(finished):
    model = AutoModelForSemanticSegmentation.from_pretrained(finished / "segment/model")
    assert model.config.id2label[3] == "2"
    assert PILImage.open(finished / "segment/classes.png").size == (96, 96)


def test_student_of_ones_own_teacher_is_stock(finished):
    assert AutoModel.from_pretrained(finished / "own_teacher/student").config.model_type == "resnet"
    assert json.loads((finished / "own_cnn/student/config.json").read_text())["architectures"] == ["OwnCNN"]


def test_detector_is_a_stock_checkpoint(finished):
    for library in ("scipy", "pycocotools"):
        pytest.importorskip(library, reason="needs the extra `detection`")
    runs = [("detection_backbone", ["--student=run/student", "--output_dir=detect", "--steps=1"])]
    assert "model: detect/model" in finish(start("-c", DRIVER, str(EXAMPLES), json.dumps(runs), folder=finished))
    model, loading = AutoModelForObjectDetection.from_pretrained(finished / "detect/model", output_loading_info=True)
    assert model.config.backbone_config.out_features == ["stage2", "stage3"]
    assert not loading["missing_keys"]


def test_two_machines_stream(world):
    """Two launchers, one process each, on the loopback; stopped after two steps, the run goes on to the fourth."""
    script = str(EXAMPLES / "stream_two_machines.py")
    flags = ["--dataset=stream", "--teacher=vit", "--student", json.dumps(STUDENT), "--image_size=64"]
    flags += ["--batch_size=2", "--workers=1", "--save_steps=2", "--output_dir=streamed"]
    written = []
    for steps in (2, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=distil"]
        launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", script, *flags, f"--steps={steps}"]
        machines = [start(*launcher, folder=world) for _ in range(2)]
        outputs = [finish(machine) for machine in machines]
        assert sum("student: streamed/student" in output for output in outputs) == 1, "one of them writes it"
        written.append((world / "streamed/checkpoint-2/manifest.json").stat().st_mtime_ns)
    assert written[0] == written[1], "a run from the start would have written the second step again"
    assert (world / "streamed/checkpoint-4").is_dir()
    assert AutoModel.from_pretrained(world / "streamed/student").config.model_type == "resnet"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda script: script.stem)
def test_examples_are_short_and_begin_with_a_command(script):
    text = script.read_text()
    if script.name not in HELPERS | LONGER:
        assert len(text.splitlines()) < 60
    if script.name not in HELPERS:
        assert f"examples/{script.name}" in text or "make quickstart" in text
