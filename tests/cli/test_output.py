"""Commands are quiet: a line a phase and one bar; all else is in run.log, and with --verbose on the terminal."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from hgkd_hf.cli.errors import run_script
from hgkd_hf.cli.main import main
from hgkd_hf.cli.output import LOG_FILE, hush, log_to, show, step

STUDENT = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1]}
STUDENT = json.dumps(STUDENT | {"layer_type": "basic"})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Images of two classes, and a ViT."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = torch.Generator().manual_seed(0)
    for split, index in [("train", index) for index in range(12)] + [("test", index) for index in range(6)]:
        path = folder / "images" / split / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 255, (40, 40, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(folder / "vit")
    ViTImageProcessorPil().save_pretrained(folder / "vit")
    return folder


def flags(command: str, inputs: Path, run: Path) -> list[str]:
    """A small run of each command that has one."""
    trains = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none"}
    trains |= {"save_strategy": "steps", "save_steps": 2}
    settings = {
        "distill": {"teacher": inputs / "vit", "student": STUDENT, "decoder_width": 32, "image_size": 64}
        | {"knn_split": "test", "knn_k": 3, **trains},
        "finetune": {"model": STUDENT, "image_size": 64, "eval_split": "test", **trains},
        "pretrain-teacher": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1}
        | {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, **trains},
        "evaluate": {"model": inputs / "vit", "image_size": 64, "knn_k": 3, "protocols": "knn"},
        "embed": {"model": inputs / "vit", "image_size": 64},
    }[command]
    settings |= {"dataset": inputs / "images", "output_dir": run}
    return [command, *(f"--{name}={value}" for name, value in settings.items())]


# Lines on the terminal: what the run is (7 of distill), what came of it (5), and no warning.
LINES = {"distill": 12, "finetune": 7, "pretrain-teacher": 6, "evaluate": 7, "embed": 3}


@pytest.mark.parametrize("command", LINES)
def test_a_line_a_phase_and_one_bar(command, inputs, tmp_path, capfd):
    main(flags(command, inputs, tmp_path / "run"))
    out, err = capfd.readouterr()
    assert len(out.strip().splitlines()) <= LINES[command], out
    screens = err.replace("\r", "\n").splitlines()
    assert len([line for line in err.split("\n") if "images/s" not in line and line.strip()]) == 0, err
    if command not in ("evaluate", "embed"):
        assert any("4/4" in line and "images/s" in line and "loss" in line for line in screens)
    for noise in ("Loading weights", "Writing model shards", "train_runtime", "grad_norm", "Warning"):
        assert noise not in out + err
    log = (tmp_path / "run" / LOG_FILE).read_text()
    assert out.strip().splitlines()[-1] in log
    assert command in ("evaluate", "embed") or '"grad_norm"' in log


def test_verbose_shows_the_log(inputs, tmp_path, capfd):
    main([*flags("pretrain-teacher", inputs, tmp_path / "run"), "--verbose"])
    assert "grad_norm" in capfd.readouterr().err


def test_dry_run_leaves_no_log(inputs, tmp_path, capfd):
    main([*flags("distill", inputs, tmp_path / "run"), "--dry_run"])
    assert not list(tmp_path.iterdir())
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.parametrize("verbose", [False, True])
def test_who_says_what_where(verbose, tmp_path, capfd):
    """Before and after the folder is known."""

    def command(arguments):
        hush()
        logging.getLogger("hgkd_hf.data").info("a detail")
        logging.getLogger("transformers.modeling_utils").warning("a table of weights")
        log_to(tmp_path)
        warnings.warn("will be removed", FutureWarning, stacklevel=1)
        logging.getLogger("hgkd_hf.data").warning("row 3 was skipped")
        show("student: here")

    run_script(command, ["--verbose"] if verbose else [])
    logging.getLogger("hgkd_hf.data").warning("after the command")
    out, err = capfd.readouterr()
    log = (tmp_path / LOG_FILE).read_text()
    assert out == "student: here\n"
    assert "WARNING: row 3 was skipped" in err
    for detail in ("a detail", "a table of weights", "will be removed"):
        assert (detail in err) == verbose
        assert f": {detail}" in log
    assert log.count("student: here") == 1
    assert "after the command" not in log


def test_log_keeps_the_traceback_of_an_error(tmp_path, capfd):
    def command(arguments):
        log_to(tmp_path)
        raise ValueError("mask_ratio is 2.")

    with pytest.raises(SystemExit, match="error: mask_ratio is 2"):
        run_script(command, [])
    assert "Traceback" not in capfd.readouterr().err
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()


def test_only_the_first_process_writes_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run_script(lambda arguments: log_to(tmp_path), [])
    assert not list(tmp_path.iterdir())


def test_a_step_of_a_command_speaks_in_its_log_alone(tmp_path, capfd):
    def outer(arguments):
        log_to(tmp_path / "outer")
        show("before")
        with step():
            log_to(tmp_path / "inner")
            show("inside")
        show("after")

    run_script(outer, [])
    assert capfd.readouterr().out == "before\nafter\n"
    log = (tmp_path / "outer" / LOG_FILE).read_text()
    assert [line.rpartition(": ")[2] for line in log.splitlines()] == ["before", "inside", "after"]
    assert not (tmp_path / "inner").exists()
