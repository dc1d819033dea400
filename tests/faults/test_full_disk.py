"""A disk that fills up during a run: one sentence, and the last good checkpoint is whole."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert said.startswith(
        f"the disk of {disk / 'run'} is full, no checkpoint can be written; the last good checkpoint"
    )
    assert "checkpoint-2: free some space" in said
    assert state.startswith(str(disk / "run" / "checkpoint-2"))
    assert "partial" not in state
    assert "checkpoint-4" not in state
