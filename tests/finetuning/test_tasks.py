import json
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoModel, ResNetModel

from hgkd_hf import SparseUNetForSemanticSegmentation, SparseUNetModel
from hgkd_hf.cli.choices import parse_task
from hgkd_hf.data import open_split
from hgkd_hf.finetuning.classification import ImageClassification, soft_cross_entropy
from hgkd_hf.finetuning.detection import ObjectDetection
from hgkd_hf.finetuning.masks import IGNORED
from hgkd_hf.finetuning.segmentation import SemanticSegmentation


@pytest.fixture
def segmentation(rectangles):
    def build(model="resnet-10", **settings):
        defaults = {"image_column": "image", "class_names": ["ground", "thing"], "ignore_index": 2}
        defaults |= {"image_size": [64, 96], "head_width": 16}
        return SemanticSegmentation(str(rectangles), str(model), **defaults | settings)

    return build


@pytest.fixture
def detection(rectangles):
    def build(model="resnet-10", **settings):
        defaults = {"image_column": "image", "image_size": [64, 96], "head_width": 32}
        defaults |= {"num_queries": 10, "decoder_layers": 1}
        return ObjectDetection(str(rectangles), str(model), **defaults | settings)

    return build


def test_soft_labels_of_whole_classes_are_plain_cross_entropy():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert soft_cross_entropy(labels, logits) == plain
    assert soft_cross_entropy(torch.eye(3)[labels], pooled_logits=logits) == pytest.approx(plain.item())


def test_classifier_starts_from_the_students_weights(rectangles, student_folder):
    task = ImageClassification(str(rectangles), str(student_folder), image_size=64, image_column="image")
    model = task.build_model()
    expected = AutoModel.from_pretrained(student_folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.resnet.state_dict().items())
    assert model.config.id2label == {0: "red", 1: "green"}
    assert task.normalisation == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    sample = task.training_data(seed=0)[0]
    assert sample["labels"].sum() == 1
    assert sample["pixel_values"].shape == (3, 64, 64)


def test_another_models_checkpoint_is_refused(rectangles, tmp_path, encoder_json):
    config = {name: value for name, value in json.loads(encoder_json).items() if name != "model_type"}
    from transformers import ResNetConfig

    ResNetModel(ResNetConfig(**config)).save_pretrained(tmp_path)
    wider = json.loads((tmp_path / "config.json").read_text()) | {"depths": [1, 2, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(wider))
    for kind in (ImageClassification, SemanticSegmentation, ObjectDetection):
        settings = {"class_names": ["a", "b"]} if kind is not ImageClassification else {}
        with pytest.raises(ValueError, match=r"lacks .*stages\.1\.layers\.1"):
            kind(str(rectangles), str(tmp_path), image_column="image", **settings).build_model()


def test_upernet_backbone_has_the_students_weights(segmentation, student_folder):
    model = segmentation(student_folder).build_model()
    expected = AutoModel.from_pretrained(student_folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
    assert model.backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_kept_decoder_has_the_students_weights(segmentation, student_folder):
    model = segmentation(student_folder / "sparse_unet").build_model()
    student = SparseUNetModel.from_pretrained(student_folder / "sparse_unet")
    assert type(model) is SparseUNetForSemanticSegmentation
    assert (student.config.decoder_stride, model.config.decoder_stride) == (16, 4)
    own, other = model.sparse_unet.decoder, student.decoder
    assert len(other.blocks) == 1
    assert torch.equal(own.blocks[0].up.weight, other.blocks[0].up.weight)
    for scale, layer in zip(other.scales, other.densify):
        twin = own.densify[[s.stride for s in own.scales].index(scale.stride)]
        assert torch.equal(twin.projection.weight, layer.projection.weight)
    assert not any("mask_token" in name for name, _ in model.named_parameters())


def test_students_without_a_backbone_class_segment_and_detect_too(segmentation, detection):
    regnet = json.dumps(
        {"model_type": "regnet", "embedding_size": 16, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1],
         "groups_width": 16}
    )  # fmt: skip
    with torch.no_grad():
        assert segmentation(regnet).build_model().eval()(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 2, 64, 96)
        assert detection(regnet).build_model().eval()(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 10, 2)


def test_fresh_heads_do_not_shrink_their_maps(segmentation, detection, student_folder):
    """transformers initialises RT-DETR for a checkpoint to be loaded over it: scales of BatchNorm from N(0, 0.01)."""
    models = [segmentation(student_folder).build_model(), segmentation(student_folder / "sparse_unet").build_model()]
    models += [detection(student_folder).build_model(), detection().build_model()]
    for model in models:
        scales = [module.weight for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert scales
        assert all(bool((scale == 1).all()) for scale in scales), type(model).__name__


def test_a_detectors_head_starts_readable_and_unsure(detection, student_folder):
    detector = detection(student_folder).build_model()
    expected = AutoModel.from_pretrained(student_folder).state_dict()
    backbone = detector.model.backbone.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.items() if "num_batches" not in name)
    output = detector(torch.randn(2, 3, 64, 96))
    assert output.encoder_last_hidden_state[0].std() > 0.1
    scores = torch.cat([output.logits.flatten(), output.enc_outputs_class.flatten()]).sigmoid()
    assert 0.003 < scores.mean() < 0.03  # a hundredth, whatever the number of classes
    (layer,) = detector.model.decoder.layers
    assert layer.encoder_attn.sampling_offsets.bias.abs().max() == layer.encoder_attn.n_points  # a star of directions
    assert (layer.encoder_attn.sampling_offsets.weight == 0).all()


def test_masks_are_batched_with_padding_and_ignored_pixels(segmentation):
    task = segmentation(scale_range=[0.4, 0.6])
    dataset = task.training_data(seed=1)
    batch = task.collate([dataset[index] for index in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 64, 96)
    assert batch["labels"].shape == (4, 64, 96)
    assert set(batch["labels"].unique().tolist()) == {0, 1, IGNORED}
    outside = (batch["pixel_values"] == 0).all(1)  # the mean colour
    assert (batch["labels"][outside] == IGNORED).float().mean() > 0.99
    assert (batch["labels"] == IGNORED).float().mean() > 0.6  # at 0.4 to 0.6 of each side at most 36 % is image
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0]["labels"], batch["labels"][0])
    dataset.set_epoch(0)
    assert torch.equal(dataset[0]["labels"], batch["labels"][0])


def test_masks_of_unequal_sizes_are_evaluated_at_their_own(segmentation):
    task = segmentation()
    samples = [
        {"pixel_values": torch.zeros(3, 64, 96), "labels": torch.zeros(size, dtype=torch.long), "sample_index": i}
        for i, size in enumerate([(10, 20), (30, 12)])
    ]
    model = task.build_model().eval()
    with torch.no_grad():
        counts = task.predict(model, task.collate(samples))
    assert [(right + missed).tolist() for right, _, missed in (count.unbind(1) for count in counts)] == [
        [200, 0],
        [360, 0],
    ]


def test_segmentation_score_by_hand(segmentation):
    """Of an image, counts are kept and no maps."""
    logits = torch.tensor([[0, 0, 1, 1]]).float()

    def model(pixel_values):
        return SimpleNamespace(logits=torch.stack([1 - logits, logits])[None])

    batch = {"pixel_values": torch.zeros(1, 3, 1, 4), "labels": torch.tensor([[[0, 1, 1, IGNORED]]])}
    predicted = segmentation().predict(model, batch)
    assert [counts.tolist() for counts in predicted] == [[[1, 1, 0], [1, 0, 1]]]
    score = segmentation().score(predicted)
    assert score == pytest.approx({"mean_iou": 0.5, "iou_ground": 0.5, "iou_thing": 0.5})


def test_boxes_are_clipped_and_left_out(detection):
    image = Image.new("RGB", (80, 60))
    objects = {"bbox": [[-10, 5, 20, 20], [70, 50, 30, 30], [90, 5, 5, 5], [3, 3, 0, 9]], "category": [0, 1, 0, 1]}
    boxes, classes = detection().read_objects(objects, image, "row 0")
    assert boxes.tolist() == [[0, 5, 10, 25], [70, 50, 80, 60]]
    assert classes.tolist() == [0, 1]
    boxes, classes = detection().read_objects({"bbox": [], "category": []}, image, "row 0")
    assert (boxes.shape, classes.shape) == ((0, 4), (0,))


def test_training_boxes_are_shares_of_the_canvas(detection):
    task = detection(scale_range=[1.0, 1.0], flip_probability=0.0)
    row = task.source.dataset[0]["objects"]["bbox"][0]
    labels = task.training_data(seed=0)[0]["labels"]
    left, top, width, height = row
    expected = [(left + width / 2) / 80, (top + height / 2) / 60, width / 80, height / 60]
    assert labels["boxes"][0].tolist() == pytest.approx(expected, abs=1e-6)


def test_predicted_boxes_are_in_pixels_of_the_image(detection):
    """A model that answers with the labelled box itself has an average precision of 1."""
    task = detection(eval_split="test")
    dataset = task.evaluation_data()
    batch = task.collate([dataset[index] for index in range(len(dataset))])
    rows = open_split(task, "eval_split", labels_field="target_column", **task.columns).dataset

    class Oracle:
        def __call__(self, pixel_values):
            boxes = torch.tensor([rows[i]["objects"]["bbox"][0] for i in range(len(rows))])
            shares = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], 1) / torch.tensor([80, 60, 80, 60])
            logits = torch.full((len(rows), 1, 2), -9.0)
            for i in range(len(rows)):
                logits[i, 0, rows[i]["objects"]["category"][0]] = 9.0
            from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

            return RTDetrObjectDetectionOutput(logits=logits, pred_boxes=shares[:, None])

    score = task.score(task.predict(Oracle(), batch))
    assert score["ap"] == pytest.approx(1)
    assert score["ap_red"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("semantic-segmentation", {"image_size": [60]}, "image_size is [60], but it must be one side, or height and"),
        ("object-detection", {"scale_range": [2.0, 1.0]}, "scale_range is [2.0, 1.0], but it must be a rising pair"),
        ("image-segmentation", {}, "task is 'image-segmentation': choose one of image-classification, semantic"),
    ],
)
def test_bad_settings_are_one_sentence(task, settings, message):
    flags = [
        f"--{name}" if i == 0 else str(v) for name, values in settings.items() for i, v in enumerate([name, *values])
    ]
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_task([f"--task={task}", "--dataset=x", "--model=resnet-18", *flags])


def test_a_dataset_without_names_or_targets_is_one_sentence(segmentation, detection, rectangles):
    with pytest.raises(ValueError, match="does not name its classes: name them with --class_names"):
        _ = segmentation(class_names=None).names
    with pytest.raises(ValueError, match="has no column 'boxes': choose --target_column from image, label, mask"):
        detection(target_column="boxes", class_names=["a"]).training_data(seed=0)
    task = ImageClassification(str(rectangles), "resnet-10", class_names=["only"], image_column="image")
    with pytest.raises(ValueError, match="has the classes 'red', 'green', but --class_names has 'only'"):
        task.training_data(seed=0)
    with pytest.raises(ValueError, match="resnet models have no stochastic depth: leave --drop_path_rate out"):
        segmentation(drop_path_rate=0.1).build_model()
