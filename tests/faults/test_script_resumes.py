"""`hgkd distill` after a stop: what it resumes, and what it refuses."""

import json
import os
import shutil

import pytest
from toy_run import wait_for
from transformers import ViTModel


def entries(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_resumes(distill, flags, stopped, finished):
    distill.main(flags(stopped, resume=True))
    assert entries(stopped) == entries(finished)


def test_resume_before_the_first_checkpoint_begins_anew(distill, flags, stopped, finished):
    shutil.rmtree(stopped / "checkpoint-2")
    distill.main(flags(stopped, resume=True))
    assert entries(stopped) == entries(finished)


def test_a_teacher_changed_under_its_name_is_refused(distill, flags, stopped, tmp_path):
    teacher = next(word.removeprefix("--teacher=") for word in flags(stopped) if word.startswith("--teacher="))
    kept = tmp_path / "kept"
    os.rename(teacher, kept)
    try:
        model = ViTModel.from_pretrained(kept, add_pooling_layer=False)
        model.layernorm.weight.data[0] += 1
        model.save_pretrained(teacher)
        with pytest.raises(ValueError, match="teacher_weights was '[0-9a-f]{32}', now '[0-9a-f]{32}'"):
            distill.main(flags(stopped, resume=True))
    finally:
        shutil.rmtree(teacher)
        os.rename(kept, teacher)


def test_nothing_complete_to_resume_from(distill, flags, stopped):
    (stopped / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="--resume: there is no .*checkpoint in"):
        distill.main(flags(stopped, resume=True))
    with pytest.raises(ValueError, match="holds checkpoint-2: add --resume to"):
        distill.main(flags(stopped))


@pytest.mark.parametrize("steps", [7, 8])
def test_a_run_that_has_done_all_its_steps_does_no_more(distill, flags, tmp_path, steps):
    """22 images in batches of 4 are 6 steps an epoch, so that neither ends with one."""
    run = tmp_path / "run"
    distill.main(flags(run, max_steps=steps))
    weights, logged = (run / "model.safetensors").read_bytes(), entries(run)
    first = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    shutil.rmtree(run / "student")
    for _ in range(2):
        distill.main(flags(run, max_steps=steps, resume=True))
        assert (run / "model.safetensors").read_bytes() == weights
        assert entries(run) == logged
        assert max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")) == steps
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["steps"], summary["train_loss"]) == (first["steps"], first["train_loss"])
    assert (run / "student" / "model.safetensors").is_file()
    assert (run / "metrics.jsonl").read_text().count("train_runtime") == 1


def test_damaged_lines_of_the_log_are_taken_out_and_named(distill, flags, stopped, finished, caplog):
    path = stopped / "metrics.jsonl"
    lines = path.read_text().splitlines()
    damaged = "\n".join([lines[0], "{", "", "[1]", '{"loss": 1}', "\x00", *lines[1:]]) + "\n"
    path.write_text(damaged)
    distill.main(flags(stopped, resume=True))
    assert "damaged lines are taken out (2, 3, 4, 5, 6)" in caplog.text
    assert (stopped / "metrics.jsonl.damaged").read_text() == damaged
    assert entries(stopped) == entries(finished)


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_only_has_the_name_of_a_checkpoint(distill, flags, stopped, kind):
    path = stopped / "checkpoint-25"
    path.write_text("mine") if kind == "a file" else path.symlink_to("gone")
    with pytest.raises(ValueError, match=f"checkpoint-25 is {kind}, not a checkpoint's folder: move it away"):
        distill.main(flags(stopped, resume=True))


@pytest.mark.parametrize("resume", [True, False])
def test_two_at_once(distill, flags, lives, tmp_path, resume):
    run = tmp_path / "run"
    (process,) = lives.start(run, hold=3)
    wait_for((run / "holding-0").exists)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"{run} is in use by process {process.pid} on "):
        distill.main(flags(run, resume=resume))
    assert before == {path: path.read_bytes() for path in before}
    (run / "go").touch()
    process.join(120)
    assert process.exitcode == 0


def test_checkpoints_without_optimizer(distill, flags, tmp_path):
    run = tmp_path / "run"
    distill.main(flags(run, save_only_model=True))
    with pytest.raises(ValueError, match="checkpoint-4 has no training_state.safetensors, as of a run with --save"):
        distill.main(flags(run, resume=True))
