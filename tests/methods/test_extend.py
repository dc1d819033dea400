"""The method of docs/extend.md: its files as the page has them keep the contract of all methods, and train."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from contract import CHECKS, STUDENT, Built

from hgkd_hf.cli import distill
from hgkd_hf.methods.base.command_settings import CommandSettings
from hgkd_hf.methods.registry import METHODS
from hgkd_hf.methods.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
FILE = re.compile(r"^```python\n# (?P<name>\w+\.py)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cosine(tmp_path_factory):
    """The page's method, in a folder of its own, known by name as the page says."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "cosine").mkdir()
    files = {match["name"]: match["text"] for match in FILE.finditer(PAGE.read_text())}
    assert files.keys() == {"settings.py", "modeling.py", "method.py"}
    for name, text in files.items():
        (folder / "cosine" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        method = importlib.import_module("cosine.method").CosineMethod
        settings = importlib.import_module("cosine.settings").CosineSettings
        patch.setitem(METHODS, "cosine", method)
        patch.setitem(SETTINGS, "cosine", (settings, CommandSettings))
        yield method
        for name in [name for name in sys.modules if name.partition(".")[0] == "cosine"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def built(cosine, world):
    return Built(cosine, "cosine", world)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(built, check, tmp_path):
    check(built, tmp_path)


def test_it_trains_by_the_command(cosine, world, tmp_path):
    settings = {"method": "cosine", "distance": "mse", "dataset": world / "images", "teacher": world / "classifier"}
    settings |= {"student": json.dumps(STUDENT), "image_size": 64, "max_steps": 2, "per_device_train_batch_size": 4}
    settings |= {"output_dir": tmp_path / "run", "disable_tqdm": True, "report_to": "none", "logging_steps": 1}
    distill.main([f"--{name}={value}" for name, value in settings.items()])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["distance"] for line in lines if "distance" in line] == [
        pytest.approx(line["loss"], rel=1e-4) for line in lines if "loss" in line
    ]
    assert json.loads((tmp_path / "run" / "student" / "config.json").read_text())["model_type"] == "resnet"
