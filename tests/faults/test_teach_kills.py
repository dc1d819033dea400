"""`hgkd teach` killed at random moments, in two processes, on a disk that fills up: the cache comes out the same."""

import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_run import ENVIRONMENT, kill, wait_for
from transformers import ViTConfig, ViTModel

SHARDS = 66


@pytest.fixture(scope="module")
def flags(lives, tmp_path_factory):
    teacher = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    )
    ViTModel(vit, add_pooling_layer=False).save_pretrained(teacher)
    settings = {"dataset": lives.images, "teacher": teacher, "image_size": 64, "views": 6, "images_per_shard": 2}

    def get(cache, **more):
        values = {**settings, "batch_size": 2, "output_dir": cache, **more}
        return [f"--{name}={value}" for name, value in values.items()]

    return get


def life(arguments: list[str], log: str, rank: int, world: int, port: int) -> None:
    """One life of the command, in a process group of its own."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    os.environ |= ENVIRONMENT
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    from hgkd_hf.cli.teach import main

    main(arguments)


@pytest.fixture
def start(lives, tmp_path):
    """Start the command in so many processes."""

    def start(arguments, world=1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        parts = [(arguments, str(tmp_path / f"output-{rank}.txt"), rank, world, port) for rank in range(world)]
        processes = [lives.context.Process(target=life, args=each) for each in parts]
        for process in processes:
            process.start()
        return processes

    return start


@pytest.fixture
def finish(start, tmp_path):
    def finish(arguments, world=1):
        processes = start(arguments, world)
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, (codes, (tmp_path / "output-0.txt").read_text()[-3000:])

    return finish


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def whole_shards(cache: Path) -> int:
    return len([path for path in cache.glob("view-*/*/manifest.json") if not path.parent.suffix])


def wait_for_shards(cache: Path, count: int) -> None:
    wait_for(lambda: whole_shards(cache) > count)


@pytest.mark.parametrize("world", [1, 2])
def test_kills(world, flags, start, finish, tmp_path):
    """Three kills at random moments, and one more life: equal to a cache written at once by one process."""
    finish(flags(tmp_path / "whole"))
    wanted = contents(tmp_path / "whole")
    assert whole_shards(tmp_path / "whole") == SHARDS
    cache, chance = tmp_path / "cache", random.Random()
    for life_number in range(3):
        wanted_shards = min(whole_shards(cache) + life_number, SHARDS - 5)
        processes = start(flags(cache), world)
        wait_for_shards(cache, wanted_shards)
        time.sleep(chance.uniform(0, 0.05))
        kill(processes if life_number else processes[-1:], signal.SIGKILL)
        kill(processes, signal.SIGKILL)
        for process in processes:
            process.join(60)
        assert 0 < whole_shards(cache) <= SHARDS
    finish(flags(cache), world)
    assert contents(cache) == wanted


def test_dying_process_leaves_shards_of_the_others(flags, start, finish, tmp_path):
    """One of two processes is killed: what both have completed is kept."""
    cache = tmp_path / "cache"
    processes = start(flags(cache), 2)
    wait_for_shards(cache, 3)
    kill(processes[1:], signal.SIGKILL)
    processes[1].join(60)
    kill(processes[:1], signal.SIGKILL)
    processes[0].join(60)
    kept = {name: content for name, content in contents(cache).items() if ".partial" not in name}
    finish(flags(cache))
    written = contents(cache)
    assert all(written[name] == content for name, content in kept.items())


# In a file system of its own of 2 MB, which needs a kernel that lets users mount.
SCRIPT = """
import os, sys
from pathlib import Path
from hgkd_hf.checkpoints.folders import RunStopped
from hgkd_hf.cli import teach
disk, arguments = Path({disk!r}), {arguments!r}
free = lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
teach.check_space = lambda *unused: (disk / "filler").write_bytes(bytes(free() - 200_000))  # room a moment ago
try:
    teach.main(arguments)
except RunStopped as error:
    print(error)
print(len(list(disk.rglob("data.arrow"))), list(disk.rglob("*.partial")))
(disk / "filler").unlink()
teach.check_space = lambda *unused: None
teach.main(arguments)
print(len(list(disk.rglob("data.arrow"))))
"""


def test_full_disk(flags, lives, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = SCRIPT.format(disk=str(disk), arguments=flags(disk / "cache"))
    mount = f'mount -t tmpfs -o size=3m tmpfs {disk} || exit 77; exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, script]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, **ENVIRONMENT}
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if result.returncode == 77 or "Operation not permitted" in result.stderr:
        pytest.skip("users may not mount here")
    assert result.returncode == 0, result.stderr[-3000:]
    said, state, *_, count = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert said.startswith(f"the disk of {disk / 'cache'} is full, and ")
    assert said.endswith("free some space, then resume with the same command; what is written is kept.")
    written, partial = state.split(" ", 1)
    assert 0 < int(written) < SHARDS
    assert partial == "[]"
    assert int(count) == SHARDS
