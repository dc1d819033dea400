"""benchmarks/gpu_check.py: every part runs on the CPU too, and one that fails does not lose the others."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hgkd_hf import SparseUNetModel

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_check

    return gpu_check


def test_small_on_the_cpu(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--small", "--output_dir", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert list(parts) == ["tests", "speed", "compile", "profile", "resume"]
    assert [row["backend"] for row in parts["speed"]["result"]] == ["dense", "masked", "cells"] * 2
    assert parts["profile"]["result"]["operations"] > 100
    assert parts["profile"]["result"]["longest"]
    assert parts["resume"]["result"]["equal"]
    text = (tmp_path / "gpu_check.md").read_text()
    assert text.count("| yes |") == 5
    assert "| step | resnet-18 | 2 | cells |" in text


def test_every_backend_sees_the_whole_image(gpu_check, monkeypatch):
    monkeypatch.setattr(gpu_check, "image_size", lambda args: 128)  # large enough for a low resolution
    sizes = []

    def note(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, SparseUNetModel):
            sizes.append(tuple(inputs[0].shape[2:]))

    steps = gpu_check.whole_steps(argparse.Namespace(device="cpu", small=True), "resnet-18", 2)
    with register_module_forward_pre_hook(note):
        for step in steps.values():
            step()
    assert sizes == [(128, 128)] * 3


def test_a_part_that_is_too_slow_keeps_what_it_has(gpu_check, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_check.LIMITS, "speed", 0.001)
    args = argparse.Namespace(device="cpu", small=True, output_dir=tmp_path)
    part = gpu_check.run_part("speed", args)
    assert not part["ok"]
    assert "more than 0.01 seconds" in part["error"]
    record = {"machine": gpu_check.machine("cpu"), "parts": {"speed": part}}
    assert "| speed | NO |" in gpu_check.table(record)
    assert "speed failed" in gpu_check.table(record)
