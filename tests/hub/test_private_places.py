"""What a run publishes tells nothing of the machine: not where its author keeps runs, models and pictures."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from .server import HubServer

REPOSITORY = Path(__file__).parents[2]
REPO = "alice/student"
OWNER, DRIVE = "Quentin Zzyzx", "My Drive"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """`data/My Drive/Quentin Zzyzx`: a home with a teacher, a network to begin with, and pictures."""
    home = tmp_path / "data" / DRIVE / OWNER
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    teacher = ViTModel(ViTConfig(image_size=64, patch_size=8, **sizes), add_pooling_layer=False)
    teacher.save_pretrained(home / "my models" / "teacher")
    network = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 1], layer_type="basic")
    ResNetModel(network).save_pretrained(home / "my models" / "network")
    for split, blue in (("train", 100), ("test", 200)):
        for index in range(8):
            path = home / "dots" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (40 * (index % 2), 9 * index, blue)).save(path)
    return home


@pytest.mark.parametrize("relative", [False, True])
def test_no_byte_of_it_leaves(hub: HubServer, home: Path, relative: bool):
    place = Path() if relative else home
    flags = {
        "teacher": place / "my models" / "teacher",
        "student": place / "my models" / "network",
        "student_pretrained": True,
        "dataset": place / "dots",
        "output_dir": home if relative else home / "runs" / "first",
        "teacher_layers": 1,
        "decoder": "truncated",
        "decoder_width": 16,
        "image_size": 64,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "logging_steps": 1,
        "knn_split": "test",
        "knn_k": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "license": "mit",
        "push_to_hub": True,
        "hub_model_id": REPO,
        "hub_strategy": "checkpoint",
    }
    command = [sys.executable, str(REPOSITORY / "training" / "distill.py")]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, **hub.env(home=home), "HOME": str(home), "CUDA_VISIBLE_DEVICES": "", "USER": OWNER}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    pushed = {name: blob.data for commit in hub.repo(REPO).log() for name, blob in commit.tree.items()}
    assert {"config.json", "card.json", "last-checkpoint/config.json", "sparse_unet/config.json"} <= {*pushed}
    words = {OWNER, OWNER.split()[1], DRIVE, quote(DRIVE), str(home.parents[2])}
    log = hub.repo(REPO).log()
    texts = {f"{name} of {commit.title}": blob.data for commit in log for name, blob in commit.tree.items()}
    told = re.compile(b".{0,80}(?:" + "|".join(map(re.escape, words)).encode() + b").{0,80}")
    assert {name: told.findall(data) for name, data in texts.items() if told.search(data)} == {}
    assert not any(word in commit.title + commit.description for commit in log for word in words)
    card = json.loads(pushed["card.json"])
    sources = (*card["teachers"], card["dataset"], card["start"])
    assert [source["name"] for source in sources] == ["teacher", "dots", "network"]
