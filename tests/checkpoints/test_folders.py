"""Checkpoint folders: whole or not there, and never the last good one deleted."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hgkd_hf.checkpoints.folders import (
    RunStopped,
    checkpoint_step,
    explain_full_disk,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    remove_partial,
)
from hgkd_hf.checkpoints.whole_folders import complete_folder, fault, write_whole, written_aside


def write(run, step, text="weights"):
    partial = run / f"checkpoint-{step}.partial"
    (partial / "part").mkdir(parents=True)
    (partial / "model.safetensors").write_text(text)
    (partial / "part" / "state.json").write_text("{}")
    return complete_folder(partial)


def steps(run):
    return [int(path.name.split("-")[1]) for path in list_checkpoints(run)]


def test_whole(tmp_path):
    folder = write(tmp_path, 20)
    assert folder == tmp_path / "checkpoint-20"
    entry = json.loads((folder / "manifest.json").read_text())["files"]["model.safetensors"]
    # printf weights | sha256sum
    assert entry == {"size": 7, "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"}
    assert fault(folder) is None
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["last-checkpoint", "checkpoint", "checkpoint-2.partial", "checkpoint-x"])
def test_a_folder_of_another_name_is_no_checkpoint(tmp_path, name):
    assert checkpoint_step(tmp_path / "checkpoint-20") == 20
    with pytest.raises(ValueError, match=f"{name} is not named checkpoint-<step>: .*resume_from_checkpoint"):
        checkpoint_step(tmp_path / name)


def truncate(folder):
    (folder / "model.safetensors").write_text("weig")


def flip(folder):
    (folder / "model.safetensors").write_text("Weights")


def remove(folder):
    (folder / "part" / "state.json").unlink()


def no_manifest(folder):
    (folder / "manifest.json").unlink()


def cut_manifest(folder):
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[: len(text) // 2])


def other_manifest(folder):
    (folder / "manifest.json").write_text("[]")


def empty_manifest(folder):
    (folder / "manifest.json").write_text('{"files": {}}')


def manifest_of(name):
    def damage(folder):
        entry = {"size": 7, "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"}
        (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "model.safetensors has 4 bytes instead of 7"),
        (flip, "model.safetensors has another checksum"),
        (remove, "part/state.json is missing"),
        (no_manifest, "it has no manifest.json"),
        (cut_manifest, "its manifest.json is not readable"),
        (other_manifest, "its manifest.json is not readable"),
        (empty_manifest, "its manifest.json lists no file"),
        (manifest_of("../checkpoint-9/model.safetensors"), "which lies outside of it"),
        (manifest_of("part/../../checkpoint-9/model.safetensors"), "which lies outside of it"),
        (manifest_of("/etc/hostname"), "which lies outside of it"),
        (manifest_of("..\\model.safetensors"), "which lies outside of it"),
    ],
)
def test_damaged_newest_is_named_and_the_one_before_taken(tmp_path, damage, words, caplog):
    write(tmp_path, 8)
    older, newest = write(tmp_path, 9), write(tmp_path, 10)
    damage(newest)
    assert newest_checkpoint(tmp_path) == older
    assert words in caplog.text
    assert "checkpoint-10 is damaged" in caplog.text
    assert write(tmp_path, 10) == newest_checkpoint(tmp_path)  # written anew over the damaged one
    assert not list(tmp_path.glob("*.partial"))


def test_partial_is_no_checkpoint(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "checkpoint-2.partial").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert steps(tmp_path) == [1]
    remove_partial(tmp_path)
    assert not (tmp_path / "checkpoint-2.partial").exists()
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [2, 4, 6, 8]), (0, None, [2, 4, 6, 8]), (2, None, [6, 8]), (1, None, [8]), (1, 2, [2, 8])],
)
def test_prune(tmp_path, limit, best, left):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    prune_checkpoints(tmp_path, limit, best)
    assert steps(tmp_path) == left


def test_prune_never_deletes_the_only_good_one(tmp_path):
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    for step in (2, 6, 8):
        truncate(tmp_path / f"checkpoint-{step}")
    prune_checkpoints(tmp_path, 1)
    assert steps(tmp_path) == [4, 6, 8]  # those after it are damaged, those before it are no longer needed
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_only_has_the_name_of_a_checkpoint_is_named(tmp_path, kind):
    path = tmp_path / "checkpoint-25"
    path.write_text("mine") if kind == "a file" else path.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=f"checkpoint-25 is {kind}, not a checkpoint's folder: move it away"):
        list_checkpoints(tmp_path)


def test_a_link_to_a_checkpoint_is_one(tmp_path):
    whole = write(tmp_path / "elsewhere", 25)
    (tmp_path / "checkpoint-25").symlink_to(whole)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-25"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full for this user"),
        (OSError(errno.EFBIG, "File too large"), "takes no file of this size"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "takes no file of this"),
    ],
)
def test_a_full_disk_is_explained(tmp_path, error, reason):
    write(tmp_path, 4)
    (tmp_path / "checkpoint-6.partial").mkdir()
    words = f"the disk of .* {reason}.*; the last complete checkpoint is checkpoint-4: "
    with pytest.raises(RunStopped, match=words), explain_full_disk(tmp_path):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_other_errors_are_not(tmp_path):
    with pytest.raises(PermissionError), explain_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_files_written_aside_arrive_together_or_not_at_all(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "model.safetensors").write_text("old")

    def files():
        return {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.*")}

    def fail():
        with written_aside(tmp_path) as aside:
            (aside / "model.safetensors").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert files() == {"README.md": "mine", "model.safetensors": "old"}
    with written_aside(tmp_path) as aside:
        (aside / "part").mkdir()
        (aside / "part" / "config.json").write_text("{}")
        (aside / "model.safetensors").write_text("new")
    assert files() == {"README.md": "mine", "model.safetensors": "new", "part/config.json": "{}"}


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_weights_have_the_permissions_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        partial = tmp_path / "checkpoint-1.partial"
        partial.mkdir()
        save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
        checkpoint = complete_folder(partial)
        with written_aside(tmp_path / "student") as aside:
            save_file({"a": torch.zeros(1)}, aside / "model.safetensors")
        assert os.umask(mask) == mask, "it is left as it was"
    finally:
        os.umask(before)
    for folder in (checkpoint, tmp_path / "student"):
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_text_file_that_cannot_be_written_leaves_nothing(tmp_path):
    write_whole(tmp_path / "identity.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "identity.json", "new\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]
    assert (tmp_path / "identity.json").read_text() == "old"
