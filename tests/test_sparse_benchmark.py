"""benchmarks/sparse_encoder.py: its records, its ratios, and that all of it still runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import ResNetConfig

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "sparse_encoder.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("sparse_encoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sparse_encoder"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sparse_encoder"]


def test_ratio_is_the_median_of_the_rounds_own(benchmark):
    # Rounds: 2, 3, 4 times as fast; the medians' ratio would be 6 / 3 = 2.
    assert benchmark.ratio([2.0, 6.0, 12.0], [1.0, 2.0, 3.0]) == 3
    assert benchmark.ratio([6.0, 9.0, 2.0], [3.0, 1.0, 2.0]) == 2


def test_actions_take_turns_and_each_turn_begins_untimed(benchmark):
    calls = []
    seconds = benchmark.time_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 2)
    assert "".join(calls) == "aabb" * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_records_of_every_backend(benchmark):
    records = benchmark.run_cases(benchmark.preset("smoke"), repetitions=1, device="cpu", memory=False)
    assert [record["backend"] for record in records] == ["dense", "masked", "cells"]
    for record in records:
        assert {"model", "dtype", "mask_ratio", "backend", "median_s", "ratio_to_masked", "peak_mb"} <= record.keys()
        assert record["median_s"] > 0
    assert records[1]["ratio_to_masked"] == 1


@pytest.mark.parametrize("preset", ["headline", "full"])
def test_presets_hold_what_docs_promise(benchmark, preset):
    cases = benchmark.preset(preset)
    wanted = {("resnet-50", "float32", 0.6), ("resnet-50", "bfloat16", 0.6), ("resnet-18", "float32", 0.6)}
    assert wanted | {("resnet-50", "float32", 0.0)} <= {(case.model, case.dtype, case.mask_ratio) for case in cases}


def test_a_step_by_its_parts(benchmark, monkeypatch, capsys):
    small = ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    monkeypatch.setattr(benchmark, "student_encoder_config", lambda name: small)
    benchmark.whole_step(repetitions=1, device="cpu", dtype="float32", batch_size=1)
    table = capsys.readouterr().out
    for part in ("teacher", "encoder, forward", "decoder and loss, backward", "encoder, backward", "whole step"):
        assert re.search(rf"^\| {part} \| \d+ \| \d+ \|$", table, re.MULTILINE), part


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--step", "--kernels"])
def test_the_other_measurements_run(flag):
    command = [sys.executable, str(SCRIPT), flag, "--repetitions", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| whole step |" in result.stdout or "| 3x3 | 8 | 64 | float32 |" in result.stdout
