"""Numbers that are no numbers, spikes, collapse and unreadable images."""

import json
import traceback
from types import SimpleNamespace

import pytest
import torch
from test_trainer import Pictures, arguments
from torch import nn
from transformers import AutoModel, TrainerCallback, TrainerControl, TrainerState

from hgkd_hf.checkpoints.folders import RunStopped
from hgkd_hf.evaluation import feature_rank, feature_std, pooled_features
from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.training.callbacks import CollapseWarning, SkippedImagesLimit
from hgkd_hf.training.guards import LossSpikes, NonFiniteGuard, finite_sum
from hgkd_hf.training.trainer import DistillationTrainer

NAN = float("nan")


class Poisoned(Pictures):
    """Picture 3 is not finite."""

    bad = (3,)

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index in self.bad:
            sample["pixel_values"] = sample["pixel_values"] * float("nan")
        return sample


def test_a_step_that_is_not_finite_is_none(hgkd, tmp_path, caplog):
    args = arguments(tmp_path, max_steps=4, logging_steps=1, learning_rate=1e-2)
    trainer = DistillationTrainer(hgkd, args, Poisoned())
    trainer.train()
    entries = [json.loads(line) for line in (tmp_path / "non_finite.jsonl").read_text().splitlines()]
    assert len(entries) == 1
    assert 3 in entries[0]["sample_index"]
    assert len(entries[0]["sample_index"]) == 4
    assert entries[0]["loss"] == "nan"
    assert f"Step {entries[0]['step']} skipped" in caplog.text
    assert all(value.isfinite().all() for value in hgkd.state_dict().values()), "weights and running statistics"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)
    assert len([line for line in lines if "loss" in json.loads(line)]) == 4


class AllPoisoned(Poisoned):
    bad = range(16)


def state_of(trainer) -> dict[str, torch.Tensor]:
    """Everything that a step changes, cloned: weights, buffers, and the optimizer's state by position and name."""
    state = dict(trainer.model.state_dict())
    for index, entry in trainer.optimizer.state_dict()["state"].items():
        state |= {f"{index}.{name}": value for name, value in entry.items() if isinstance(value, torch.Tensor)}
    return {name: value.clone() for name, value in state.items()}


class Watch(TrainerCallback):
    """Keeps what was before and after the steps."""

    def __init__(self, trainer):
        self.trainer, self.states = trainer, []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        self.states.append(state_of(self.trainer))


OPTIMIZERS = ["adamw_torch_fused", "adamw_torch", "sgd"]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.0}, {"bf16": True}])
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_skipped_step_leaves_weights_moments_and_buffers_as_they_were(hgkd, tmp_path, optim, settings):
    """Step 2 alone is bad: all that it may change is as after step 1, counters too, and step 3 goes on from there."""

    class OneBad(DistillationTrainer):
        def compute_loss(self, model, inputs, **kwargs):
            if self.state.global_step == 1:
                inputs = inputs | {"pixel_values": inputs["pixel_values"] * NAN}
            return super().compute_loss(model, inputs, **kwargs)

    trainer = OneBad(hgkd, arguments(tmp_path, max_steps=3, learning_rate=0.1, optim=optim, **settings), Pictures())
    watch = Watch(trainer)
    trainer.train()
    first, second, third = watch.states
    assert first.keys() == second.keys()
    assert all(value.equal(second[name]) for name, value in first.items())
    assert not all(value.equal(third[name]) for name, value in second.items())
    assert all(value.isfinite().all() for value in third.values())
    assert any("num_batches_tracked" in name for name in first), "counters are looked at"
    (entry,) = map(json.loads, (tmp_path / "non_finite.jsonl").read_text().splitlines())
    assert (entry["step"], entry["loss"], len(entry["sample_index"])) == (1, "nan", trainer.args.images_per_step)


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_runs_of_skipped_steps_alone_learn_nothing(hgkd, tmp_path, optim):
    before = {name: value.clone() for name, value in hgkd.state_dict().items()}
    args = arguments(tmp_path, max_steps=3, learning_rate=1.0, max_non_finite_steps=3, optim=optim)
    trainer = DistillationTrainer(hgkd, args, AllPoisoned())
    trainer.train()
    after = hgkd.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    states = trainer.optimizer.state_dict()["state"].values()
    assert all(not value.any() for state in states for value in state.values() if value is not None)


class Scaler:
    """Of fp16, whose scale is searched for where it is high."""

    def __init__(self, scale: float):
        self.scale = scale

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(("scale", "counted"), [(65536.0, 0), (0.5, 1)])
def test_fp16_skips_while_it_searches_for_its_scale_and_the_buffers_are_taken_back(tmp_path, scale, counted):
    model = nn.BatchNorm1d(2)
    accelerator = SimpleNamespace(
        scaler=Scaler(scale), distributed_type=None, reduce=lambda value, how: value, is_main_process=True
    )
    guard = NonFiniteGuard(model, accelerator, 10, tmp_path / "non_finite.jsonl")
    optimizer = SimpleNamespace(optimizer=None, zero_grad=lambda set_to_none: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.begin_batch()
    model(torch.full((4, 2), 1e30).half().float())
    guard.end_batch(torch.tensor(1.0), torch.arange(4))
    guard.judge(0, torch.tensor(float("inf")), optimizer)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert guard.read() == ([(0, 1.0)] if not counted else [])
    assert guard.skipped == counted


def test_the_device_is_waited_for_when_something_is_logged_alone(hgkd, tmp_path, monkeypatch):
    """Between logs no number is read, neither by us nor by `Trainer`."""
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def count(self, *args, original=original):
            if self.is_floating_point() or self.dtype == torch.bool:
                reads.append("".join(traceback.format_stack(limit=6)))
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, count)
    found = {}

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            reads.clear()

        def on_step_end(self, args, state, control, **kwargs):
            found[state.global_step] = [read for read in reads if "on_step_end" not in read and "/torch/" not in read]

    args = arguments(tmp_path, max_steps=6, logging_steps=6, report_to="none")
    DistillationTrainer(hgkd, args, Pictures(), callbacks=[Count()]).train()
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert not found[3], found[3][0]
    assert not found[5]


def test_steps_are_read_at_last_after_fifty(hgkd, tmp_path):
    args = arguments(tmp_path, max_steps=55, logging_steps=100, max_non_finite_steps=2, save_strategy="no")
    trainer = DistillationTrainer(hgkd, args, AllPoisoned())
    with pytest.raises(RunStopped, match="3 steps had a loss"):
        trainer.train()
    assert trainer.state.global_step == 49


def test_no_checkpoint_is_written_of_a_run_that_is_to_be_stopped(hgkd, tmp_path):
    args = arguments(tmp_path, max_steps=6, logging_steps=100, max_non_finite_steps=2, save_steps=3)
    with pytest.raises(RunStopped, match="3 steps had a loss"):
        DistillationTrainer(hgkd, args, AllPoisoned()).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_too_many_stop_the_run(hgkd, tmp_path):
    args = arguments(tmp_path, max_non_finite_steps=2)
    with pytest.raises(RunStopped, match=r"3 steps had a loss .* --max_non_finite_steps 2: .*non_finite.jsonl"):
        DistillationTrainer(hgkd, args, AllPoisoned()).train()
    assert len((tmp_path / "non_finite.jsonl").read_text().splitlines()) == 3


def test_fewer_samples_than_a_step_takes(hgkd, tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=5, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match=r"has 16 samples, but a step takes 20 \(5 a batch, 4 accumulated, 1 process"):
        DistillationTrainer(hgkd, args, Pictures())


def test_spikes_stand_out_of_what_was_usual():
    spikes = LossSpikes()
    generator = torch.Generator().manual_seed(0)
    usual = (2 + 0.1 * torch.randn(300, generator=generator)).tolist()
    assert not any(spikes.is_spike(100.0 if step == 3 else loss) for step, loss in enumerate(usual[:40])), "warming up"
    spikes = LossSpikes()
    assert not any(map(spikes.is_spike, usual))
    assert spikes.mean == pytest.approx(2, abs=0.05)
    assert spikes.variance**0.5 == pytest.approx(0.1, rel=0.3)
    assert spikes.is_spike(4.0)
    assert not spikes.is_spike(0.1), "a fall is none"


def test_finite_sum_leaves_out_what_is_not():
    total = None
    for value in (1.0, float("nan"), 2.5, float("inf")):
        total = finite_sum(total, torch.tensor(value, dtype=torch.float64))
    assert total.tolist() == [3.5, 2.0]


@pytest.mark.parametrize(
    ("first", "std", "rank", "warned"),
    [
        (0.9, 0.9, 20.0, False),
        (0.9, 0.1, 20.0, True),
        (0.9, 0.9, 1.01, True),
        (0.9, NAN, NAN, True),
        (NAN, 0.9, 20.0, False),
        (0.5, 0.0, 0.0, True),
        # Measured: ResNet-18 before and after H-GKD and SparK, a DeiT by manifold distillation, ResNet-10 that is
        # trained to make all images alike, for 30 and 120 steps.
        (0.111, 0.143, 29.7, False),
        (0.111, 0.502, 38.8, False),
        (0.871, 0.536, 24.7, False),
        (0.228, 0.0504, 13.0, True),
        (0.228, 0.0190, 4.62, True),
    ],
)
def test_collapse(first, std, rank, warned, caplog):
    callback = CollapseWarning()
    for name, value, its_rank in (("before", first, 60.0), ("eval", std, rank)):
        caplog.clear()
        metrics = {f"{name}_knn_accuracy": 0.1, f"{name}_feature_std": value, f"{name}_feature_rank": its_rank}
        callback.on_evaluate(None, TrainerState(), TrainerControl(), metrics=metrics)
    assert ("has collapsed or is about to" in caplog.text) == warned


@pytest.mark.parametrize("depth", ["resnet-10", "resnet-50", "resnet-152", "mobilenet_v2"])
def test_a_fresh_network_has_not_collapsed(depth, caplog):
    """Its features are alike, more so the deeper it is, and may be tiny."""
    torch.manual_seed(0)
    student = depth if depth.startswith("resnet") else {"model_type": depth}
    encoder = AutoModel.from_config(student_encoder_config(student)).eval()
    images = torch.rand(24, 3, 1, 1) * torch.rand(24, 3, 64, 64)
    with torch.no_grad():
        features = pooled_features(encoder, images)
    metrics = {"before_feature_std": feature_std(features), "before_feature_rank": feature_rank(features)}
    CollapseWarning().on_evaluate(None, TrainerState(), TrainerControl(), metrics=metrics)
    assert "collapsed" not in caplog.text, metrics


def test_limit_of_unreadable_images():
    data = SimpleNamespace(skipped_share=0.1, skipped_log="skipped.tsv")
    limit = SkippedImagesLimit(data, 0.1)
    limit.on_step_end(None, None, None)
    data.skipped_share = 0.123
    with pytest.raises(RunStopped, match=r"12.3% of the images cannot be read \(named in skipped.tsv\), more than"):
        limit.on_step_end(None, None, None)
