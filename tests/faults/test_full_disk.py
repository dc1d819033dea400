"""A disk that fills up during a run: one sentence, and the last good checkpoint is whole."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hgkd_hf.checkpoints.folders import RunStopped

# In a file system of its own of 3 MB, which needs a kernel that lets users mount.
SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy_run
from transformers import TrainerCallback
from hgkd_hf.checkpoints.folders import RunStopped, newest_checkpoint

class Fill(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        free = os.statvfs({disk!r})
        Path({disk!r}, "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - 100_000))

original = toy_run.RecordingTrainer.__init__
def init(self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.add_callback(Fill())
toy_run.RecordingTrainer.__init__ = init
os.setsid = lambda: None
images = toy_run.write_images(Path({images!r}))
told, os.dup2 = sys.stdout, lambda *numbers: None
try:
    toy_run.live({run!r}, str(images), {{}})
except RunStopped as error:
    print(error, file=told)
    print(newest_checkpoint({run!r}), sorted(os.listdir({run!r})), file=told, flush=True)
"""


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), disk=str(disk), run=str(disk / "run"), images=str(tmp_path / "images")
    )
    mount = f'mount -t tmpfs -o size=3m tmpfs {disk} || exit 77; exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, script]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if result.returncode == 77 or "Operation not permitted" in result.stderr:
        pytest.skip("users may not mount here")
    said, state = result.stdout.strip().splitlines()[-2:]
    assert said.startswith(f"the disk of {disk / 'run'} is full; the last complete checkpoint is")
    assert "checkpoint-2: free some space" in said
    assert state.startswith(str(disk / "run" / "checkpoint-2"))
    assert "partial" not in state
    assert "checkpoint-4" not in state


# What a whole run writes, in this order; each with how a disk that is full refuses it.
WRITES = {
    "identity.json": "hgkd_hf.checkpoints.identity.write_whole",
    "recipe.yaml": "hgkd_hf.cli.distill.write_whole",
    "optimizer": "hgkd_hf.checkpoints.resume.save_state",
    "a checkpoint's manifest": "hgkd_hf.checkpoints.resume.complete_folder",
    "metrics.jsonl": "hgkd_hf.training.metrics_file.MetricsFile.on_log",
    "the final model": "transformers.PreTrainedModel.save_pretrained",
    "the student": "transformers.ResNetModel.save_pretrained",
}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EFBIG], ids=errno.errorcode.get)
@pytest.mark.parametrize("what", WRITES)
def test_wherever_the_disk_is_full_there_is_one_sentence_and_nothing_half_written(
    distill, flags, tmp_path, monkeypatch, what, error
):
    monkeypatch.setattr(WRITES[what], refuse(error))
    run = tmp_path / "run"
    with pytest.raises(RunStopped) as caught:
        distill.main(flags(run, max_steps=2))
    assert str(caught.value).startswith(f"the disk of {run} {FULL[error]}")
    assert "\n" not in str(caught.value)
    assert not list(run.rglob("*.partial"))
    assert not (run / "summary.json").exists()
    monkeypatch.undo()
    distill.main(flags(run, max_steps=2, resume=what != "identity.json"))
    assert (run / "student" / "model.safetensors").is_file()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]


FULL = {errno.ENOSPC: "is full; ", errno.EFBIG: "takes no file of this size"}


def refuse(number):
    def write(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return write


def test_a_limit_of_the_size_of_files(distill, flags, tmp_path):
    """As `ulimit -f` sets it: a real EFBIG, which safetensors passes on as text."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(RunStopped, match="takes no file of this size .ulimit -f.*; there is no checkpoint yet: "):
            distill.main(flags(tmp_path / "run", max_steps=2, disable_tqdm=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("*.partial"))
