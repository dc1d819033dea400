"""Changed settings at --resume: what decides what is learned is refused by name, or allowed by name and applied."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from toy_run import STUDENT, write_images

# name, value: what the sentence says of it
REFUSED = {
    "max_steps up": ({"max_steps": 8}, "max_steps was 4, now 8"),
    "max_steps below the step": ({"max_steps": 1}, "max_steps was 4, now 1"),
    "epochs instead of steps": ({"max_steps": -1, "num_train_epochs": 1}, "max_steps was 4, now -1"),
    "learning rate": ({"learning_rate": 9e-4}, r"learning_rate was [\d.e-]+, now 0.0009"),
    "base learning rate": ({"base_learning_rate": 1e-3}, r"learning_rate was [\d.e-]+, now [\d.e-]+"),
    "schedule": ({"lr_scheduler_type": "linear"}, "lr_scheduler_type was 'cosine', now 'linear'"),
    "warmup": ({"warmup_steps": 2}, "warmup_steps was 0.05, now 2"),
    "weight decay": ({"weight_decay": 0.5}, "weight_decay was 0.05, now 0.5"),
    "first beta": ({"adam_beta1": 0.8}, "adam_beta1 was 0.9, now 0.8"),
    "second beta": ({"adam_beta2": 0.999}, "adam_beta2 was 0.95, now 0.999"),
    "epsilon": ({"adam_epsilon": 1e-6}, "adam_epsilon was 1e-08, now 1e-06"),
    "gradient norm": ({"max_grad_norm": 1.0}, "max_grad_norm was 5.0, now 1.0"),
    "optimizer": ({"optim": "sgd"}, "optim was 'adamw_torch_fused', now 'sgd'"),
    "precision": ({"bf16": True}, "precision was 'float32', now 'bf16'"),
    "seed": ({"seed": 1}, "seed was 42, now 1; data_seed was 42, now 1"),
    "seed of the data": ({"data_seed": 7}, "data_seed was 42, now 7"),
    "batch size": ({"per_device_train_batch_size": 2}, "images_per_step was 4, now 2; images_per_batch was 4, now 2"),
    "accumulation": (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        r"settings \(images_per_batch was 4, now 2\)",
    ),
    "mask": ({"mask_ratio": 0.5}, "mask_ratio was 0.6, now 0.5"),
    "decoder": ({"decoder_width": 32}, "decoder_width was 16, now 32"),
    "student": ({"student": json.dumps(STUDENT | {"hidden_sizes": [16, 16, 16]})}, "student was"),
    "images": ({"max_samples": 20}, "max_samples was None, now 20; rows was 22, now 20; images was"),
    "stream": ({"streaming": True}, "streaming was False, now True"),
    "shuffled stream": ({"streaming": True, "shuffle_buffer": 4}, "shuffle_buffer was 0, now 4"),
    "flips": ({"flip_probability": 0}, "flip_probability was 0.5, now 0"),
    "loss": ({"loss": "mse"}, "loss was .*, now 'mse'"),
    "dropped samples": ({"dataloader_drop_last": True}, "dataloader_drop_last was False, now True"),
}
# Settings that change neither a sample nor a step.
FREE = {
    "workers": {"dataloader_num_workers": 1},
    "checkpoints": {"save_steps": 1, "save_total_limit": 1},
    "logs": {"log_level": "info", "logging_first_step": True},
    "guards": {"max_non_finite_steps": 3, "max_skipped_share": 0.5},
    "licence": {"license": "mit"},
}


def trained(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry["learning_rate"]) for entry in entries if "loss" in entry]


def same_weights(one, other):
    one, other = (load_file(run / "model.safetensors") for run in (one, other))
    return all(one[name].equal(value) for name, value in other.items())


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(distill, flags, stopped, kind):
    changes, words = REFUSED[kind]
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=words) as caught:
        distill.main(flags(stopped, resume=True, **changes))
    assert "--allow_changes" in str(caught.value)
    assert before == {path: path.read_bytes() for path in before}, "the refused command changed the run"


@pytest.mark.parametrize("kind", FREE)
def test_free_to_change(distill, flags, stopped, finished, kind):
    distill.main(flags(stopped, resume=True, **FREE[kind]))
    assert [entry[:2] for entry in trained(stopped)] == [entry[:2] for entry in trained(finished)]
    assert same_weights(stopped, finished)


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        # Warmup takes one step of the four: 0, then the rate, then half a cosine over the other three.
        ({"learning_rate": 1.0}, [0.75, 0.25]),
        ({"max_steps": 6}, [0.9045084971874737, 0.6545084971874737]),
        ({"lr_scheduler_type": "constant"}, [1, 1]),
    ],
)
def test_an_allowed_schedule_is_that_of_the_new_settings_from_there_on(distill, flags, stopped, changes, shares):
    distill.main([*flags(stopped, resume=True, **changes), "--allow_changes", *changes])
    rate = json.loads((stopped / "identity.json").read_text())["learning_rate"]
    assert [rate for _, _, rate in trained(stopped)][2:4] == pytest.approx([share * rate for share in shares])


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 0.5}, {"adam_beta1": 0.5, "adam_beta2": 0.6}, {"adam_epsilon": 1.0}, {"mask_ratio": 0.5}],
    ids=lambda changes: next(iter(changes)),
)
def test_allowed_changes_are_applied_named_and_recorded(distill, flags, stopped, finished, changes, caplog):
    distill.main([*flags(stopped, resume=True, **changes), "--allow_changes", *changes])
    assert all(f"{name} was" in caplog.text for name in changes)
    assert trained(stopped)[:2] == trained(finished)[:2]
    assert not same_weights(stopped, finished)
    arguments = json.loads((stopped / "checkpoint-4" / "training_args.json").read_text())
    recorded = json.loads((stopped / "identity.json").read_text())
    for name, value in changes.items():
        assert recorded[name] == value
        assert arguments.get(name, value) == value
    shutil.rmtree(stopped / "checkpoint-4")
    distill.main(flags(stopped, resume=True, **changes))  # it is now the run's own setting


def test_another_optimizer_begins_with_fresh_moments(distill, flags, stopped, caplog):
    distill.main([*flags(stopped, resume=True, optim="sgd"), "--allow_changes", "optim"])
    assert "its moments start from zero" in caplog.text
    assert [step for step, _, _ in trained(stopped)] == [1, 2, 3, 4]


def test_all_changes_are_allowed_at_once(distill, flags, stopped):
    changes = {"mask_ratio": 0.5, "weight_decay": 0.1}
    distill.main(flags(stopped, resume=True, allow_changes="all", **changes))
    assert json.loads((stopped / "identity.json").read_text())["mask_ratio"] == 0.5


def test_a_network_that_does_not_fit_the_checkpoint(distill, flags, stopped):
    with pytest.raises(
        ValueError, match="checkpoint-2 does not fit the network of these settings .*decoder"
    ) as caught:
        distill.main(flags(stopped, resume=True, decoder_width=32, allow_changes="all"))
    assert "\n" not in str(caught.value)


def test_a_name_of_nothing_that_is_compared(distill, flags, stopped):
    with pytest.raises(ValueError, match="--allow_changes max_step: there is no such .* did you mean max_steps?"):
        distill.main(flags(stopped, resume=True, max_steps=8, allow_changes="max_step"))


def test_fewer_steps_than_are_done(distill, flags, stopped):
    with pytest.raises(ValueError, match="checkpoint-2 is of a later step than --max_steps 1: raise it"):
        distill.main(flags(stopped, resume=True, max_steps=1, allow_changes="max_steps"))


def test_images_replaced_under_the_same_name(distill, flags, stopped, lives, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(lives.images, images)
    record = json.loads((stopped / "identity.json").read_text())
    (stopped / "identity.json").write_text(json.dumps(record | {"dataset": str(images)}))
    distill.main(flags(stopped, resume=True, dataset=images))
    write_images(images, seed=1)
    with pytest.raises(ValueError, match=r"settings \(images was '[0-9a-f]{32}', now '[0-9a-f]{32}'\)"):
        distill.main(flags(stopped, resume=True, dataset=images))
