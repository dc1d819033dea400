"""training/evaluate.py as users run it: any checkpoint, a table, JSON and the Hub's forms."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hgkd_hf import SparseUNetConfig, SparseUNetModel
from hgkd_hf.data import ImageTransform, load_images
from hgkd_hf.evaluation import image_set_features, knn_accuracy
from hgkd_hf.evaluation.frozen import teacher_features

SCRIPT = Path(__file__).parents[2] / "training" / "evaluate.py"
ENCODER = ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic")


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """An imagefolder of two classes, 12 + 6 noisy pictures."""
    folder = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 6)):
        for index in range(count):
            pixels = torch.randint(0, 160, (40, 40, 3), generator=generator)
            pixels[..., index % 2] += 60
            path = folder / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A stock CNN, the whole student around it, and a ViT that lacks its pooler."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    student = SparseUNetModel(SparseUNetConfig(encoder_config=ENCODER, decoder_width=64))
    student.save_pretrained(folder / "whole")
    student.to_native().save_pretrained(folder / "stock")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vit = ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False)
    vit.save_pretrained(folder / "vit")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def evaluate_script():
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_script"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["evaluate_script"]


def flags(model: Path, dataset: Path, output: Path, *more: str) -> list[str]:
    common = [f"--model={model}", f"--dataset={dataset}", f"--output_dir={output}", "--image_size=64", "--knn_k=3"]
    return [*common, "--shots", "1", "2", *more]


def test_table_json_and_model_index(evaluate_script, models, colours, tmp_path, capsys):
    evaluate_script.main(flags(models["stock"], colours, tmp_path, f"--teacher={models['vit']}"))
    found = json.loads((tmp_path / "results.json").read_text())["metrics"]
    names = {"knn_accuracy", "linear_accuracy", "1_shot_accuracy", "2_shot_deviation", "feature_rank", "teacher_cka"}
    assert names <= set(found)
    transform = ImageTransform(64, train=False)
    model = ResNetModel.from_pretrained(models["stock"]).eval()
    bank, queries = (
        image_set_features(model, load_images(colours, split=split), transform) for split in ("train", "test")
    )
    assert found["knn_accuracy"] == knn_accuracy(bank, queries, k=3)
    assert (
        f"| knn_accuracy | {found['knn_accuracy']:.4g} | weighted kNN, k 3, temperature 0.07 |"
        in capsys.readouterr().out
    )
    _, entries = model_index_to_eval_results(
        yaml.safe_load((tmp_path / "model-index.yaml").read_text())["model-index"]
    )
    assert {entry.metric_name: entry.metric_value for entry in entries}["knn accuracy"] == found["knn_accuracy"]
    assert not (tmp_path / ".eval_results").exists()  # only for datasets of the Hub


def test_whole_student_has_its_encoders_features(evaluate_script, models, colours, tmp_path):
    protocols = ("--protocols", "knn", "linear")
    stock, whole = (evaluate_script.main(flags(models[n], colours, tmp_path, *protocols)) for n in ("stock", "whole"))
    assert stock == whole


def test_a_vits_random_pooler_is_not_evaluated(evaluate_script, models, colours, tmp_path):
    arguments = flags(models["vit"], colours, tmp_path, "--protocols", "representation")
    assert evaluate_script.main(arguments) == evaluate_script.main(arguments)


def test_a_checkpoint_with_holes_is_refused(evaluate_script, models, colours, tmp_path):
    shutil.copytree(models["stock"], tmp_path / "holes")
    config = json.loads((tmp_path / "holes" / "config.json").read_text()) | {"depths": [1, 2, 1, 1]}
    (tmp_path / "holes" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks encoder\.stages\.1\.layers\.1.*: its features would be random"):
        evaluate_script.main(flags(tmp_path / "holes", colours, tmp_path))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--protocols=nearest", "there is no protocol 'nearest': choose --protocols from knn, linear"),
        ("--bank_samples=2", "nothing can be held out to choose l2"),
    ],
)
def test_bad_input_is_one_sentence(evaluate_script, models, colours, tmp_path, flag, message):
    with pytest.raises(ValueError, match=message):
        evaluate_script.main(flags(models["stock"], colours, tmp_path, flag))


def test_two_processes_write_what_one_does(evaluate_script, models, colours, tmp_path):
    """Each extracts half of the features, and keeps its half of the bank."""
    protocols = ("--protocols", "knn", "linear", "representation")
    alone = evaluate_script.main(flags(models["stock"], colours, tmp_path / "one", *protocols))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    command = [*launcher, *flags(models["stock"], colours, tmp_path / "two", *protocols)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert run.returncode == 0, run.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two.pop("metrics") == pytest.approx(one.pop("metrics"), rel=1e-5)
    assert two == one
    assert run.stdout.count("| knn_accuracy |") == 1
    assert alone["knn_accuracy"] > 0.5


def test_as_a_command(models, colours, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *flags(models["stock"], colours, tmp_path, "--eval_split=validation")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "has no split 'validation'" in run.stderr


def test_layers_of_a_vit_are_measured_one_by_one(evaluate_script, models, colours, tmp_path):
    chosen = ["--protocols", "knn", "--layers", "1", "-1"]
    found = evaluate_script.main(flags(models["vit"], colours, tmp_path, *chosen))
    assert list(found) == ["knn_accuracy_layer_1", "knn_accuracy_layer_-1"]
    sources, transform = (
        (load_images(colours, split=split) for split in ("train", "test")),
        ImageTransform(64, train=False),
    )
    (bank,), (queries,) = (teacher_features(str(models["vit"]), [1], source, transform) for source in sources)
    assert found["knn_accuracy_layer_1"] == knn_accuracy(bank, queries, k=3)
    with pytest.raises(
        ValueError, match=r"layers of teacher .* must be -1 \(final output\), 1 to 2 \(blocks\) or 0 .*, not 3"
    ):
        evaluate_script.main(flags(models["vit"], colours, tmp_path, "--layers", "3"))
    with pytest.raises(ValueError, match="linear-segmentation reads a ViT's final output: leave --layers out"):
        evaluate_script.main(flags(models["vit"], colours, tmp_path, "--protocols=linear-segmentation", "--layers=1"))
