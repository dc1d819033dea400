"""Fixtures: a Hub of one's own, Python in a fresh process, and a student to publish."""

import logging
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session
from transformers import ResNetConfig, ResNetModel
from transformers.image_processing_utils import BaseImageProcessor

from hgkd_hf.cli.publish import main
from hgkd_hf.hub import License, Source, StudentCard, student_image_processor, write_student_folder

from .server import HubServer
from .store import WRITER

REPO = "alice/tiny"
WEIGHTS = random.Random(0).randbytes(50_000)
CARD = "---\nlicense: apache-2.0\ntags:\n- distilled\n---\n# Tiny\n"
FILES = ["README.md", "config.json", "model.safetensors", "student/config.json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running Hub without repositories.

    `hub.api(token)` is a client in this process, `hub.env(token)` the environment for a client in another one (see
    `run_python`). Module-level functions of `huggingface_hub`, `from_pretrained` and `push_to_hub` need the second:
    their modules read HF_ENDPOINT and HF_HOME when they are imported.
    """
    for name in os.environ:
        if re.fullmatch(r"HF_TOKEN|HUGGING_?FACE_HUB_TOKEN|.*_PROXY", name, re.IGNORECASE):
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    close_session()  # its client may have been made with a proxy
    with HubServer(tmp_path) as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server
    close_session()
    assert not server.bugs, server.bugs[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves behind: a card, a configuration, weights (a large file) and a file in a subfolder."""
    root = tmp_path / "run"
    (root / "student").mkdir(parents=True)
    (root / "README.md").write_text(CARD)
    (root / "config.json").write_text('{"a": 1}')
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "student" / "config.json").write_text('{"b": 2}')
    return root


@pytest.fixture
def pushed(hub: HubServer, folder: Path) -> HfApi:
    """The writer's client, after that folder was pushed."""
    api = hub.api()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="Push the run")
    return api


Spawn = Callable[..., subprocess.Popen]
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def spawn_python() -> Iterator[Spawn]:
    """`spawn_python(code, env, *arguments)`: start a process and return it; what still runs at the end is killed."""
    running: list[subprocess.Popen] = []

    def spawn(code: str, env: dict[str, str], *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield spawn
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run_python(spawn_python: Spawn) -> Run:
    """`run_python(code, env, *arguments, check=True, timeout=120)`: run a process to its end.

    Returns `returncode`, `stdout` and `stderr`. A failure is an AssertionError with stderr, unless `check` is off.
    """

    def run(
        code: str, env: dict[str, str], *arguments: object, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess:
        process = spawn_python(code, env, *arguments)
        stdout, stderr = process.communicate(timeout=timeout)
        assert process.returncode == 0 or not check, stderr
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, noted instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the package and `transformers` log, which else goes past pytest."""
    for name in ("transformers", "hgkd_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


MIT = License("mit")


@pytest.fixture
def card() -> StudentCard:
    """Of a student whose teacher and data decide its licence."""
    source = Source("alice/teacher", on_hub=True, license=MIT)
    return StudentCard(name="student", method="hgkd", teachers=[source], dataset=Source("alice/dots", True, None, MIT))


@pytest.fixture
def student() -> ResNetModel:
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()


def processor() -> BaseImageProcessor:
    """The image processor of `student`."""
    return student_image_processor(32, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def run(tmp_path: Path, student: ResNetModel, card: StudentCard) -> Path:
    """The publishable folder of a finished run."""
    return write_student_folder(student, tmp_path / "run" / "student", processor(), card)


@pytest.fixture
def publish(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`hgkd publish` in this process, logged in as alice: `publish(arguments...)`."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return lambda *arguments: main([*map(str, arguments)])
