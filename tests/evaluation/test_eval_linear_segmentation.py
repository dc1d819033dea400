"""The linear segmentation probe is DINOv2's head on upsampled maps, computed before the upsampling; deterministic."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from hgkd_hf.cli.evaluate import main as evaluate
from hgkd_hf.evaluation.frozen import load_maps
from hgkd_hf.evaluation.linear_segmentation import (
    SegmentationProbe,
    SegmentationProbeSettings,
    channel_statistics,
    evaluate_segmentation_probe,
    extract_maps,
    fit_segmentation_probe,
)
from hgkd_hf.finetuning.segmentation_probe import BoxProbe
from hgkd_hf.students.sparse_unet import SparseUNetConfig, SparseUNetModel

IGNORED = -100
ENCODER = ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic")
FAST = SegmentationProbeSettings(epochs=20, batch_size=4, learning_rate=5e-2)


def scenes(count: int, seed: int = 0) -> list[dict]:
    """One batch: noise, and class maps of 16 x 24 whose class 1 is where the first channel is high."""
    generator = torch.Generator().manual_seed(seed)
    labels = F.interpolate(torch.randint(2, (count, 1, 4, 6), generator=generator).float(), scale_factor=4)[
        :, 0
    ].long()
    images = torch.randn(count, 3, 16, 24, generator=generator) * 0.1
    images[:, 0] += labels
    labels[:, :, 0] = IGNORED
    return [{"pixel_values": images, "labels": labels, "sample_index": torch.arange(count)}]


def maps_of(images: torch.Tensor) -> list[torch.Tensor]:
    """Two scales: the image's own channels, and some of no use at half of the size."""
    return [F.avg_pool2d(images, 2), F.avg_pool2d(images[:, 1:], 4)]


def test_statistics_are_those_of_all_positions():
    values = 3 + 2 * torch.randn(5, 4, 6, 7)
    mean, variance = channel_statistics(values.half())
    torch.testing.assert_close(mean, values.mean((0, 2, 3)), atol=1e-2, rtol=0)
    torch.testing.assert_close(variance, values.var((0, 2, 3), correction=0), atol=2e-2, rtol=0)


def test_logits_are_those_of_the_upsampled_maps():
    fine, coarse = torch.randn(3, 4, 8, 10), 5 + torch.randn(3, 6, 4, 5)
    probe = SegmentationProbe([fine, coarse], 3)
    for head in probe.classifiers:
        torch.nn.init.normal_(head.weight)
        torch.nn.init.normal_(head.bias)
    upsampled = torch.cat([fine, F.interpolate(coarse, (8, 10), mode="bilinear", align_corners=False)], 1)
    norm = torch.nn.BatchNorm2d(10, affine=False).eval()
    for name in ("running_mean", "running_var"):
        getattr(norm, name).copy_(torch.cat([getattr(own, name) for own in probe.norms]))
    weight = torch.cat([head.weight for head in probe.classifiers], 1)
    expected = F.conv2d(norm(upsampled), weight, sum(head.bias for head in probe.classifiers))
    torch.testing.assert_close(probe([fine, coarse]), expected, atol=1e-5, rtol=1e-5)


def test_what_is_linear_is_found_and_every_fit_is_the_same():
    train, test = scenes(12), scenes(6, seed=1)
    maps = extract_maps(maps_of, train, 12, "cpu")
    assert [tuple(values.shape) for values in maps.maps] == [(12, 3, 8, 12), (12, 2, 4, 6)]
    assert maps.labels.shape == (12, 8, 12)
    probes = [fit_segmentation_probe(maps, 2, IGNORED, FAST) for _ in range(2)]
    for one, other in zip(*(probe.parameters() for probe in probes)):
        assert torch.equal(one, other)
    mean, per_class = evaluate_segmentation_probe(probes[0], maps_of, test, 2, IGNORED)
    assert mean > 0.9
    assert len(per_class) == 2
    chance, _ = evaluate_segmentation_probe(SegmentationProbe(maps.maps, 2), maps_of, test, 2, IGNORED)
    assert chance < 0.5


def test_a_row_that_stands_in_for_another_counts_once():
    (batch,) = scenes(4)
    batch["sample_index"] = torch.tensor([0, 2, 2, 3])  # row 1 is unusable, and 2 came in its place
    again = {
        "pixel_values": batch["pixel_values"][:1],
        "labels": batch["labels"][:1],
        "sample_index": torch.tensor([3]),
    }
    assert len(extract_maps(maps_of, [batch, again], 5, "cpu")) == 3


def test_maps_that_do_not_fit_the_memory_are_refused(monkeypatch):
    free = SimpleNamespace(available=10_000)
    monkeypatch.setattr("hgkd_hf.evaluation.linear_segmentation.psutil.virtual_memory", lambda: free)
    with pytest.raises(
        ValueError, match=r"the maps of 100 images need .* GB, but .* lower --image_size or --bank_sam"
    ):
        extract_maps(maps_of, scenes(4), 100, "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    ResNetModel(ENCODER).save_pretrained(folder / "cnn")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=16), add_pooling_layer=False).save_pretrained(folder / "vit")
    return folder


def test_maps_of_a_cnn_are_its_scales_and_of_a_vit_its_tokens(models):
    images = torch.randn(2, 3, 64, 96)
    statistics = ((0.5,) * 3, (0.25,) * 3)
    shapes = [tuple(m.shape) for m in load_maps(str(models / "cnn"), None, (64, 96), *statistics)(images)]
    assert shapes == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    shapes = [tuple(m.shape) for m in load_maps(str(models / "vit"), None, (64, 96), *statistics)(images)]
    assert shapes == [(2, 32, 4, 6)]


@pytest.mark.parametrize(
    ("settings", "decoded"),
    [({"decoder_stride": 16}, [(2, 8, 4, 6)]), ({"decoder_stride": 2}, []), ({"use_decoder": False}, [])],
)
def test_a_whole_student_gives_its_decoders_map_too_unless_it_is_finer(tmp_path, settings, decoded):
    torch.manual_seed(0)
    config = SparseUNetConfig(encoder_config=ENCODER, decoder_width=16, **settings)
    student = SparseUNetModel(config).eval()
    student.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 96)
    maps = load_maps(str(tmp_path), None, (64, 96), (0.5,) * 3, (0.25,) * 3)(images)
    expected = student(images, output_hidden_states=True)
    encoder = [(2, 16, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    assert sorted(tuple(map_.shape) for map_ in maps) == sorted(encoder + decoded)
    widths = [map_.shape[-1] for map_ in maps]
    assert widths == sorted(widths, reverse=True)
    wanted = [*expected.feature_maps, *([expected.last_hidden_state] if decoded else [])]
    for map_ in wanted:
        assert any(torch.equal(map_, found) for found in maps if found.shape == map_.shape)


@pytest.fixture
def masks(tmp_path):
    from datasets import Dataset, Features, Image
    from PIL import Image as PILImage

    rows = {"image": [], "mask": []}
    for index in range(6):
        mask = torch.zeros(60, 80, dtype=torch.uint8)
        mask[10 + index : 40, 20:50] = 1
        pixels = torch.stack([mask * 200, mask * 0 + 60, mask * 0], 2)
        rows["image"].append(PILImage.fromarray(pixels.numpy()))
        rows["mask"].append(PILImage.fromarray(mask.numpy()))
    folder = tmp_path / "masks"
    folder.mkdir()
    features = Features({"image": Image(), "mask": Image()})
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def flags(models, masks, output, *more: str) -> list[str]:
    common = [f"--model={models / 'cnn'}", f"--dataset={masks}", f"--output_dir={output}", "--image_size", "64", "96"]
    return [*common, "--class_names", "ground", "thing", "--protocols", "linear-segmentation", *more]


def test_the_command_writes_mean_and_classes(models, masks, tmp_path, capsys):
    metrics = evaluate(flags(models, masks, tmp_path / "out"))
    assert set(metrics) == {f"linear_segmentation_{name}" for name in ("miou", "iou_ground", "iou_thing")}
    assert metrics["linear_segmentation_miou"] > 0.7
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metrics"] == metrics
    assert (results["splits"], results["image_size"]) == ({"train": 6, "test": 6}, [64, 96])
    shown = f"| linear_segmentation_miou | {metrics['linear_segmentation_miou']:.4g} | linear probe on frozen maps"
    assert shown in capsys.readouterr().out
    assert evaluate(flags(models, masks, tmp_path / "again")) == metrics


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["knn"], "linear-segmentation needs other annotations than the other protocols: choose it alone"),
        (["--class_names", "ground"], "hold values of no class"),
        (
            ["--image_column", "image", "--target_column", "masks"],
            "has no column 'masks': choose --target_column from",
        ),
        (["--image_size", "60"], "each a multiple of 32"),
    ],
)
def test_bad_input_is_one_sentence(models, masks, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        evaluate(flags(models, masks, tmp_path, *more))


@pytest.fixture
def boxes(tmp_path):
    """Grey pictures with a red and, inside of it, a green rectangle, and the boxes of both."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value
    from PIL import Image as PILImage

    rows = {"image": [], "objects": []}
    for index in range(6):
        pixels = torch.full((60, 80, 3), 90, dtype=torch.uint8)
        pixels[10:50, 20 + index : 70] = torch.tensor([220, 30, 30], dtype=torch.uint8)
        pixels[20:40, 40:60] = torch.tensor([30, 220, 30], dtype=torch.uint8)
        rows["image"].append(PILImage.fromarray(pixels.numpy()))
        found = [[40.0, 20.0, 20.0, 20.0], [20.0 + index, 10.0, 50.0 - index, 40.0]]
        rows["objects"].append({"bbox": found, "category": [1, 0]})
    names = ClassLabel(names=["red", "green"])
    features = Features({"image": Image(), "objects": {"bbox": List(List(Value("float32"))), "category": List(names)}})
    folder = tmp_path / "boxes"
    folder.mkdir()
    for split in ("train", "test"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_insides_of_boxes_are_class_maps_with_the_smaller_box_on_top(models, boxes):
    task = BoxProbe(model=str(models / "cnn"), dataset=str(boxes), image_size=[64, 96])
    assert task.map_names == ("background", "red", "green")
    labels = task.samples(task.source, False, 0, None)[2]["labels"]
    expected = torch.zeros(60, 80, dtype=torch.int64)
    expected[10:50, 22:70] = 1
    expected[20:40, 40:60] = 2
    assert torch.equal(labels, expected)


def test_the_command_probes_boxes(models, boxes, tmp_path):
    common = [f"--model={models / 'cnn'}", f"--dataset={boxes}", f"--output_dir={tmp_path / 'out'}"]
    metrics = evaluate([*common, "--protocols=linear-boxes", "--image_size", "64", "96"])
    names = ("miou", "iou_background", "iou_red", "iou_green")
    assert set(metrics) == {f"linear_boxes_{name}" for name in names}
    assert metrics["linear_boxes_miou"] > 0.6
    with pytest.raises(ValueError, match="do not fit"):
        evaluate([*common, "--protocols=linear-boxes", "--image_size", "64", "96", "--box_format=xyxy-normalised"])
