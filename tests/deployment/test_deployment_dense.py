"""Segmenters and detectors as finetune.py leaves them, through export.py; other heads end in one sentence."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, ViTConfig

from hgkd_hf import SparseUNetConfig
from hgkd_hf.cli.export import main as export
from hgkd_hf.deployment import OnnxStudent, check_onnx, export_onnx, export_program, kind_of, load_student
from hgkd_hf.finetuning.detection import ObjectDetection
from hgkd_hf.finetuning.segmentation import SemanticSegmentation

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason="needs the extra `export`")

RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 16, 32, 32]}
RESNET |= {"depths": [1, 1, 1, 1]}
# Without a backbone class of its own in transformers: the student's own backbone stands around it.
REGNET = {"model_type": "regnet", "embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1]}
REGNET |= {"groups_width": 16}


def segmenter(encoder: dict, keep_decoder: bool = False) -> SemanticSegmentation:
    model = json.dumps(encoder)
    if keep_decoder:
        model = SparseUNetConfig(encoder_config=AutoConfig.for_model(**encoder), decoder_width=64).to_json_string()
    return SemanticSegmentation("-", model, class_names=["a", "b"], image_size=[64, 96], head_width=16)


def detector(encoder: dict) -> ObjectDetection:
    settings = {"class_names": ["a", "b"], "image_size": [64, 96], "head_width": 32, "num_queries": 6}
    return ObjectDetection("-", json.dumps(encoder), task="object-detection", decoder_layers=1, **settings)


TASKS = {
    "UPerNet": lambda: segmenter(RESNET),
    "UPerNet on a CNN without a backbone class": lambda: segmenter(REGNET),
    "kept decoder": lambda: segmenter(RESNET, keep_decoder=True),
    "RT-DETR": lambda: detector(RESNET),
    "RT-DETR on a CNN without a backbone class": lambda: detector(REGNET),
}


def trained(task) -> torch.nn.Module:
    """The task's model as a short training leaves it: with statistics of its data."""
    torch.manual_seed(0)
    model = task.build_model()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches seen, here one
            torch.nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 96))
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "without" in name else ()) for name in TASKS]
)
def test_dense_models_are_exported_as_they_are(name, tmp_path, capsys):
    task = TASKS[name]()
    model = trained(task)
    model.save_pretrained(tmp_path)
    task.image_processor().save_pretrained(tmp_path)
    rows = export([str(tmp_path), "--rounds=1", "--threads=1"])
    assert [row["program"] for row in rows] == ["PyTorch float32", "ONNX float32"]
    told = capsys.readouterr().out
    assert 0 < float(told.split("ONNX float32 equals PyTorch within ")[1].split()[0]) < 1e-4
    assert f"{type(model).__name__}, one image of 64x96 px" in told
    outputs = OnnxStudent(tmp_path / "onnx/model.onnx", 1).outputs(torch.zeros(1, 3, 64, 96))
    expected = {"logits": (1, 2, 64, 96)} if "RT-DETR" not in name else {"logits": (1, 6, 2), "pred_boxes": (1, 6, 4)}
    assert {name: output.shape for name, output in outputs.items()} == expected


def test_a_detectors_file_that_computes_something_else_is_refused(tmp_path):
    """Such scores are nearly all alike: a comparison must not depend on which of equal ones are chosen."""
    model = trained(detector(RESNET))
    path = export_onnx(export_program(model, (64, 96)), tmp_path / "model.onnx", ("logits", "pred_boxes"))
    assert check_onnx(path, model, [(1, 64, 96)]) < 1e-4
    head = model.model.decoder.bbox_embed[-1].layers[-1].bias.data
    head += 0.01
    with pytest.raises(ValueError, match="output 'pred_boxes' of 1 images of 64x96 px differs from PyTorch's by"):
        check_onnx(path, model, [(1, 64, 96)])
    head -= 0.01
    for layer in (model.model.enc_output[0], model.model.enc_score_head):
        torch.nn.init.normal_(layer.weight)
    with pytest.raises(ValueError, match="output 'scores of the chosen places' of 1 images of 64x96 px differs"):
        check_onnx(path, model, [(1, 64, 96)])


def test_int8(tmp_path, rectangles_of_colour):
    task = segmenter(RESNET)
    trained(task).save_pretrained(tmp_path)
    task.image_processor().save_pretrained(tmp_path)
    flags = [f"--dataset={rectangles_of_colour}", "--calibration_images=4", "--rounds=1"]
    rows = export([str(tmp_path), *flags])
    assert [row["program"] for row in rows] == ["PyTorch float32", "ONNX float32", "ONNX int8"]
    with pytest.raises(ValueError, match="accuracy is measured of encoders and classifiers, not of segmenters: drop"):
        export([str(tmp_path), *flags, "--accuracy_split=train"])


@pytest.fixture
def rectangles_of_colour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index in range(4):
        Image.new("RGB", (96, 64), (60 * index, 90, 200)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    "architecture",
    ["ViTForMaskedImageModeling", "DetrForObjectDetection", "HGKDForPreTraining", "MaskFormerForInstanceSegmentation"],
)
def test_other_heads_are_refused_in_one_sentence(architecture, tmp_path):
    ViTConfig(architectures=[architecture]).save_pretrained(tmp_path)
    message = f"{architecture} cannot be exported: there are programs of "
    message += "encoders, classifiers, segmenters, RT-DETR detectors."
    for load in (lambda: load_student(tmp_path), lambda: export([str(tmp_path)]), lambda: kind_of(architecture)):
        with pytest.raises(ValueError) as error:
            load()
        assert str(error.value) == message
