import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from hgkd_hf.evaluation import Features, feature_rank, knn_accuracy
from hgkd_hf.objectives.whitening import Whitening
from hgkd_hf.sparse.masking import random_cell_mask
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer


class Pictures(Dataset):
    """16 pictures of two classes; the mask depends on epoch and index, as in the real dataset."""

    epochs: list[int]

    def __init__(self, masks: bool = True):
        self.pixels = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.pixels[::2, 0] += 2
        self.masks, self.epoch, self.epochs = masks, 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        sample = {"pixel_values": self.pixels[index], "sample_index": index, "labels": index % 2}
        if self.masks:
            generator = torch.Generator().manual_seed(100 * self.epoch + index)
            sample["bool_masked_pos"] = random_cell_mask((4, 4), 0.6, generator)
        return sample


def arguments(folder, **settings) -> DistillationArguments:
    defaults = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "disable_tqdm": True, "knn_k": 3}
    return DistillationArguments(output_dir=str(folder), **{**defaults, **settings})


def test_learning_rate_grows_with_the_root_of_the_images_of_a_step(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=16, gradient_accumulation_steps=4, base_learning_rate=1e-3)
    assert args.images_per_step == 64
    assert args.learning_rate == pytest.approx(5e-4)
    assert arguments(tmp_path, learning_rate=0.3).learning_rate == 0.3


@pytest.mark.parametrize("keep_best", [False, True])
def test_named_terms_epochs_and_checkpoints(hgkd, keep_best, tmp_path):
    data = Pictures()
    knn = Pictures(masks=False), Pictures(masks=False)
    settings = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    args = arguments(tmp_path, load_best_model_at_end=keep_best, **settings)
    trainer = DistillationTrainer(hgkd, args, data, knn)
    trainer.train()
    if keep_best:
        best = load_file(Path(trainer.state.best_model_checkpoint, "model.safetensors"))
        assert all(torch.equal(value.cpu(), best[name]) for name, value in hgkd.state_dict().items())
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in training] == [2, 4, 6]
    for entry in training:
        assert entry["feature_loss"] == pytest.approx(entry["loss"], rel=1e-4)
        assert entry["images_per_second"] > 0
    assert [entry["step"] for entry in entries if "eval_knn_accuracy" in entry] == [3, 6]
    assert list(dict.fromkeys(data.epochs)) == [0, 1]
    saved = {path.name for folder in tmp_path.glob("checkpoint-*") for path in folder.iterdir()}
    assert "model.safetensors" in saved
    assert "training_args.bin" not in saved
    assert trainer.state.best_metric >= 0.5


def test_evaluation_is_knn_of_the_dense_student(hgkd, tmp_path):
    knn = Pictures(masks=False), Pictures(masks=False)
    hgkd.train()
    trainer = DistillationTrainer(hgkd, arguments(tmp_path), Pictures(), knn)
    metrics = trainer.evaluate()
    assert hgkd.training
    with torch.no_grad():
        features = hgkd.eval().student.to_native()(knn[0].pixels).pooler_output.flatten(1)
    expected = Features(features, torch.arange(16) % 2)
    assert metrics["eval_knn_accuracy"] == knn_accuracy(expected, expected, k=3, temperature=0.07)
    assert metrics["eval_feature_rank"] == pytest.approx(feature_rank(features), rel=1e-4)


def test_no_weight_decay_on_norms_biases_and_mask_tokens(hgkd, tmp_path):
    trainer = DistillationTrainer(hgkd, arguments(tmp_path), Pictures())
    decayed = set(trainer.get_decay_parameter_names(hgkd))
    for name, parameter in hgkd.named_parameters():
        norm = "norm" in name or (name.endswith((".1.weight", ".4.weight")) and parameter.dim() == 1)
        assert (name in decayed) == (not norm and not name.endswith(("bias", "mask_token"))), name
    optimized = {id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert optimized == {id(p) for p in hgkd.parameters()}


def test_accumulated_batches_equal_one_large_batch(hgkd, tmp_path):
    """The logged and optimised loss is the mean over the step's images, however they are cut into batches."""
    import copy

    losses = []
    for number, settings in enumerate(
        ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    ):
        model = copy.deepcopy(hgkd)
        for module in model.modules():  # statistics are a batch's own: take them out of the comparison
            if isinstance(module, torch.nn.BatchNorm2d | Whitening):
                module.train = lambda mode=True, module=module: module
                module.training = False
        args = arguments(tmp_path / str(number), logging_steps=1, max_steps=3, max_grad_norm=0.0, **settings)
        DistillationTrainer(model, args, Pictures()).train()
        lines = (tmp_path / str(number) / "metrics.jsonl").read_text().splitlines()
        losses.append([entry["loss"] for entry in map(json.loads, lines) if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
