"""The word `auto`: what it comes to, that it is said, and that a run that goes on does not ask anew."""

import math
from dataclasses import dataclass

import pytest
import torch
import yaml

from hgkd_hf.cli.recipe import parse_recipe, to_recipe
from hgkd_hf.data import collate
from hgkd_hf.training import arguments as module
from hgkd_hf.training.arguments import DistillationArguments
from hgkd_hf.training.memory_estimate import MemoryEstimate
from hgkd_hf.training.trainer import DistillationTrainer


@dataclass
class Settings:
    dataset: str = "images"
    resume: bool = False
    dry_run: bool = False


def arguments(folder, **settings) -> DistillationArguments:
    return DistillationArguments(output_dir=str(folder), **settings)


@pytest.fixture
def machine(monkeypatch):
    """A machine of a given memory in bytes, on which a step takes 100 and each image 10."""

    def build(free: int) -> None:
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        monkeypatch.setattr(module, "estimate_memory", lambda *args: MemoryEstimate(9999, 50, 50, 0, 10))

    return build


@pytest.mark.parametrize(
    ("free", "samples", "accumulated", "size"),
    [
        (1000, 10**6, 1, 64),  # 800 of it may be used: 100 + 64 * 10
        (924, 10**6, 1, 32),
        (10**9, 10**6, 1, 256),
        (10**9, 100, 1, 64),
        (10**9, 100, 4, 16),
        (10**9, 3, 4, 1),  # too few samples: refused by the trainer, which says why
        (138, 10**6, 1, 1),
    ],
)
def test_batch_size_fits_memory_and_data(machine, free, samples, accumulated, size, tmp_path):
    machine(free)
    args = arguments(tmp_path, per_device_train_batch_size="auto", gradient_accumulation_steps=accumulated)
    args.settle_batch_size(None, range(samples), collate)
    assert args.per_device_train_batch_size == size
    assert args.learning_rate == pytest.approx(2e-3 * math.sqrt(size * accumulated / 256))
    assert args.describe()["auto"] == f"per_device_train_batch_size {size}"
    args.settle_batch_size(None, None, None)  # it is settled


def test_no_image_fits(machine, tmp_path):
    machine(130)
    args = arguments(tmp_path, per_device_train_batch_size="auto")
    with pytest.raises(ValueError, match=r"one image needs .* but .* can be used: choose a smaller student"):
        args.settle_batch_size(None, range(9), collate)


def test_batch_size_of_a_real_model(hgkd, tmp_path):
    sample = {"pixel_values": torch.randn(3, 64, 64), "bool_masked_pos": torch.arange(16).view(4, 4) > 5}
    args = arguments(tmp_path, per_device_train_batch_size="auto", learning_rate=0.1)
    args.settle_batch_size(hgkd, [sample] * 40, collate)
    assert (args.per_device_train_batch_size, args.images_per_step, args.learning_rate) == (32, 32, 0.1)


def test_a_trainer_settles_what_its_caller_did_not(hgkd, tmp_path):
    sample = {"pixel_values": torch.randn(3, 64, 64), "bool_masked_pos": torch.arange(16).view(4, 4) > 5}
    args = arguments(tmp_path, per_device_train_batch_size="auto", disable_tqdm=True)
    trainer = DistillationTrainer(hgkd, args, [sample] * 9)
    assert (args.per_device_train_batch_size, trainer._train_batch_size) == (8, 8)


@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, 4, 2), (1, 4, 1), (128, 2, 16)])
def test_workers_share_the_cores(cores, processes, workers, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert arguments(tmp_path, dataloader_num_workers="auto").dataloader_num_workers == workers
    assert arguments(tmp_path, dataloader_num_workers=3).dataloader_num_workers == 3


@pytest.mark.parametrize(
    ("precision", "native", "bf16", "mixed"),
    [
        ("auto", True, False, "bf16"),
        ("auto", False, True, "no"),  # flags win: --precision auto over a recipe's bf16
        ("bf16", False, False, "bf16"),
        ("float32", True, True, "no"),
        (None, True, True, "bf16"),
        (None, True, False, "no"),
    ],
)
def test_precision(precision, native, bf16, mixed, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(module, "has_native_bf16", lambda use_cpu: native)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    args = arguments(tmp_path, precision=precision, bf16=bf16, use_cpu=True)
    assert (args.mixed_precision, args.bf16, args.fp16) == (mixed, mixed == "bf16", False)
    assert args.autocast_dtype == (torch.bfloat16 if mixed == "bf16" else None)
    assert args.precision != "auto"
    assert ("imitates bfloat16" in caplog.text) == (mixed == "bf16" and not native)


def test_float32_though_the_launcher_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert arguments(tmp_path, precision="float32", use_cpu=True).mixed_precision == "no"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("per_device_train_batch_size", "many", r"give a number, or auto \(--per_device_train_batch_size\)\."),
        ("dataloader_num_workers", "1.5", r"give a number, or auto \(--dataloader_num_workers\)\."),
        ("precision", "half", r"choose one of float32, bf16, fp16, auto \(--precision\)\."),
    ],
)
def test_another_word_is_refused(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name} is '{value}': {allowed}"):
        parse_recipe((Settings, DistillationArguments), [f"--{name}", value])


def test_a_run_that_goes_on_does_not_ask_anew(machine, monkeypatch, tmp_path):
    machine(1000)
    monkeypatch.setattr(module, "has_native_bf16", lambda use_cpu: True)
    monkeypatch.setattr(module, "available_cores", lambda: 3)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    flags = ["--per_device_train_batch_size=auto", "--dataloader-num-workers", "auto", "--precision=auto", "--use_cpu"]
    flags += ["--output_dir", str(tmp_path)]
    settings, training = parse_recipe((Settings, DistillationArguments), flags)
    training.settle_batch_size(None, range(10**6), collate)
    (tmp_path / "recipe.yaml").write_text(to_recipe(settings, training))
    written = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    settled = {"per_device_train_batch_size": 64, "dataloader_num_workers": 3, "precision": "bf16"}
    assert {name: written[name] for name in settled} == settled
    assert not {"resume", "dry_run"} & set(written)

    monkeypatch.setattr(module, "has_native_bf16", lambda use_cpu: False)
    monkeypatch.setattr(module, "available_cores", lambda: 7)
    _, again = parse_recipe((Settings, DistillationArguments), [*flags, "--resume"])
    assert {name: getattr(again, name) for name in settled} == settled
    assert again.auto == ()
    assert again.learning_rate == training.learning_rate
    _, anew = parse_recipe((Settings, DistillationArguments), flags)
    assert (anew.per_device_train_batch_size, anew.dataloader_num_workers, anew.precision) == ("auto", 7, "float32")


def test_a_recipe_gives_its_settings_again(tmp_path):
    given = parse_recipe((Settings, DistillationArguments), ["--max_steps=7", "--adam_beta2=0.9", "--use_cpu"])
    path = tmp_path / "recipe.yaml"
    path.write_text(to_recipe(*given))
    again = parse_recipe((Settings, DistillationArguments), ["--recipe", str(path)])
    assert [vars(part) for part in again[:1]] == [vars(part) for part in given[:1]]
    assert again[1].to_dict() == given[1].to_dict()
