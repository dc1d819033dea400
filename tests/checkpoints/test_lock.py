"""One process at a time in a run's folder; locks of the dead are none."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from hgkd_hf.checkpoints import lock
from hgkd_hf.checkpoints.lock import run_lock

# By its path, since the package imports torch.
HOLD = """
import os, runpy, sys, time
with runpy.run_path(sys.argv[1])["run_lock"](sys.argv[2]):
    worker = os.fork()  # as a data loader's, which outlives its killed parent
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of `tmp_path`, and its worker's id."""
    command = [sys.executable, "-c", HOLD, lock.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    yield process, worker
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


def test_the_other_process_is_named(tmp_path, holder):
    named = f"is in use by process {holder[0].pid} on {socket.gethostname()}, since 20"
    with pytest.raises(ValueError, match=named), run_lock(tmp_path):
        pass
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder[0].pid, "it is still the holder's"


def test_the_lock_of_a_killed_process_is_free_at_once_though_its_worker_lives(tmp_path, holder):
    process, worker = holder
    process.kill()
    process.wait()
    os.kill(worker, 0)  # it is there
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_its_own_process_may_enter_again(tmp_path):
    with run_lock(tmp_path / "run"), run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with run_lock(tmp_path):
        assert "cannot be locked" in caplog.text
