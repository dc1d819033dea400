"""Students as ONNX, int8 and torch.export programs: they compute what PyTorch computes."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, BitConfig, ResNetConfig

from hgkd_hf.data import ImageTransform
from hgkd_hf.deployment import (
    OnnxStudent,
    StudentOutputs,
    check_onnx,
    export_onnx,
    export_program,
    load_student,
    load_transform,
    median_latencies,
    quantize_int8,
)
from hgkd_hf.hub import student_image_processor
from hgkd_hf.hub.student_card import StudentCard

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason="needs the extra `export`")

REPOSITORY = Path(__file__).parents[2]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)


def small(**settings):
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "layer_type": "basic"}
    return ResNetConfig(**sizes | settings)


@pytest.fixture(scope="module")
def classifier() -> AutoModelForImageClassification:
    model = AutoModelForImageClassification.from_config(small(num_labels=3)).eval()
    for module in model.modules():  # statistics that are not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def test_padding_by_the_images_size_is_exported_for_one_size_only():
    sizes = {"embedding_size": 16, "hidden_sizes": [32], "depths": [1], "num_groups": 4}
    model = AutoModel.from_config(BitConfig(global_padding="same", embedding_dynamic_padding=True, **sizes)).eval()
    with pytest.raises(ValueError, match="--fixed_size"):
        export_program(model, (64, 96))
    program = export_program(model, (64, 96), dynamic_size=False)
    images = torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(program.module()(images)[0], model(images).last_hidden_state)


@pytest.fixture(scope="module")
def folder(classifier, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    classifier.save_pretrained(folder)
    student_image_processor(64, MEAN, STD, crop_fraction=0.8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_file(classifier, tmp_path_factory) -> Path:
    return export_onnx(
        export_program(classifier, (64, 64)), tmp_path_factory.mktemp("onnx") / "a/model.onnx", ("logits",)
    )


def test_onnx_equals_pytorch_at_other_batches_and_sizes(onnx_file, classifier):
    shapes = [(1, 64, 64), (3, 64, 64), (2, 96, 160)]
    assert check_onnx(onnx_file, classifier, shapes) < 1e-4
    student = OnnxStudent(onnx_file, threads=1)
    images = torch.randn(2, 3, 80, 64)
    assert list(student.outputs(images)) == ["logits"]
    torch.testing.assert_close(student(images), classifier(images).logits, atol=1e-4, rtol=0)


def test_check_refuses_a_file_that_computes_something_else(onnx_file):
    torch.manual_seed(1)
    other = AutoModelForImageClassification.from_config(small(num_labels=3)).eval()
    other.classifier[1].bias.data += 0.01
    with pytest.raises(ValueError, match="output 'logits' of 1 images of 64x64 px differs from PyTorch's by"):
        check_onnx(onnx_file, other, [(1, 64, 64)])


def test_program_of_a_backbone_gives_map_and_features():
    model = AutoModel.from_config(small()).eval()
    program = export_program(model, (64, 64)).module()
    images = torch.randn(1, 3, 96, 64)
    states, features = program(images)
    wanted = model(images)
    torch.testing.assert_close(states, wanted.last_hidden_state)
    torch.testing.assert_close(features, wanted.pooler_output.flatten(1))
    assert StudentOutputs(model).kind.outputs == ("last_hidden_state", "features")


def test_int8_is_smaller_and_near(onnx_file, classifier, tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 64, 64, generator=generator) for _ in range(2)]
    quantized = quantize_int8(onnx_file, tmp_path / "int8.onnx", iter(batches))
    import onnx

    kinds = {node.op_type for node in onnx.load(quantized).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert "BatchNormalization" not in kinds
    wanted, given = classifier(batches[0]).logits, OnnxStudent(quantized)(batches[0])
    error, spread = (given - wanted).abs().mean().item(), wanted.std().item()
    assert 0 < error < 0.2 * spread, "quantized, but still the same classifier"


def test_int8_without_calibration_images_says_so(onnx_file, tmp_path):
    with pytest.raises(ValueError, match="no calibration images.*--calibration_images"):
        quantize_int8(onnx_file, tmp_path / "int8.onnx", [])


def test_latencies_are_medians_taken_in_turns(monkeypatch):
    calls = []
    clock = itertools.count(step=0.001)
    monkeypatch.setattr("hgkd_hf.deployment.latency.time.perf_counter", lambda: next(clock))
    programs = {"a": lambda: calls.append("a"), "b": lambda: [calls.append("b"), next(clock)]}
    assert median_latencies(programs, rounds=3, warmup=1) == pytest.approx({"a": 1.0, "b": 2.0})
    assert calls == ["a", "b"] * 4
    with pytest.raises(ValueError, match="rounds is 0.*--rounds"):
        median_latencies(programs, rounds=0)


def test_folder_is_loaded_as_its_config_says(folder, classifier, tmp_path):
    assert type(load_student(folder)) is type(classifier)
    AutoModel.from_config(small()).save_pretrained(tmp_path)
    assert type(load_student(tmp_path)).__name__ == "ResNetModel"
    assert load_transform(folder) == ImageTransform(
        (64, 64), train=False, image_mean=MEAN, image_std=STD, crop_fraction=0.8
    )
    assert load_transform(folder, size=96).size == (96, 96)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_export", REPOSITORY / "training/export.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_script_writes_programs_and_one_table(script, folder, tmp_path, capsys):
    data = tmp_path / "images"
    for split, index in itertools.product(("train", "test"), range(6)):
        path = data / split / "abc"[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 60), (40 * index, 0, 255 - 40 * index)).save(path)
    out = tmp_path / "out"
    StudentCard(name="tiny", method="kd", student="ResNetForImageClassification").save(out / "card.json")
    flags = {"output_dir": out, "dataset": data, "accuracy_split": "test", "rounds": 2, "threads": 1}
    rows = script.main([str(folder), *(f"--{name}={value}" for name, value in flags.items())])
    assert [row["program"] for row in rows] == ["PyTorch float32", "ONNX float32", "ONNX int8"]
    assert rows[0]["top-1 accuracy"] == rows[1]["top-1 accuracy"]
    assert {path.name for path in out.rglob("*") if path.is_file()} == {
        "program.pt2",
        "model.onnx",
        "model_int8.onnx",
        "deployment.json",
        "card.json",
        "README.md",
    }
    assert [line for line in (out / "README.md").read_text().splitlines() if line.startswith("| ONNX float32")] == [
        "| " + " | ".join(map(str, rows[1].values())) + " |"
    ]
    kept = json.loads((out / "deployment.json").read_text())
    assert kept["rows"] == rows
    assert "64x64 px on 1 thread(s)" in kept["conditions"]
    assert "| program | megabytes | milliseconds | top-1 accuracy |" in capsys.readouterr().out
    images = torch.randn(2, 3, 64, 64)
    (logits,) = torch.export.load(out / "program.pt2").module()(images)
    torch.testing.assert_close(logits, load_student(folder)(images).logits)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds=0"], "rounds is 0.*--rounds"),
        (["--accuracy_split=test"], "add --dataset"),
        (["--calibration_images=-1"], "calibration_images is -1"),
    ],
)
def test_bad_flags_are_sentences(script, folder, flags, message):
    with pytest.raises(ValueError, match=message):
        script.main([str(folder), *flags])


def test_hub_id_needs_an_output_folder(script):
    with pytest.raises(ValueError, match="'user/name' is not a folder.*--output_dir"):
        script.main(["user/name"])
