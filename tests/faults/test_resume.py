"""A run killed at any moment and resumed equals one never interrupted, bit for bit."""

import json
import signal

import pytest
from toy_run import facts, kill, wait_for

KINDS = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2},
    "accumulated": {"gradient_accumulation_steps": 2, "max_steps": 7, "save_steps": 2},
    "streaming": {"streaming": True},
    "streaming-workers": {"streaming": True, "dataloader_num_workers": 2},
    "streaming-shuffled": {"streaming": True, "shuffle_buffer": 5},
    "two-processes": {"world": 2},
    "two-processes-streaming": {"world": 2, "streaming": True, "dataloader_num_workers": 2},
}


@pytest.fixture(scope="module")
def whole(lives, tmp_path_factory):
    """Runs never interrupted, by their kind."""
    runs = {}

    def get(kind):
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp("whole") / kind
            lives.finish(runs[kind], **KINDS[kind])
        return runs[kind]

    return get


def newest(run):
    return max((int(path.name.split("-")[1]) for path in run.glob("checkpoint-*[0-9]")), default=0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed(lives, whole, tmp_path, kind, number):
    run, world = tmp_path / "run", KINDS[kind].get("world", 1)
    processes = lives.start(run, **KINDS[kind], hold=5)
    wait_for(lambda: len(list(run.glob("holding-*"))) == world)
    kill(processes, number)
    (run / "go").touch()
    for process in processes:
        process.join(60)
    assert newest(run) == (6 if number == signal.SIGTERM else 4)
    assert {process.exitcode for process in processes} == {-9 if number == signal.SIGKILL else 143}
    assert not (run / "weights.txt").exists()
    if number == signal.SIGTERM:
        assert "SIGTERM: saved checkpoint-6;" in (run / "output-0.txt").read_text()
    lives.finish(run, **KINDS[kind])
    assert facts(run, world) == facts(whole(kind), world)


def test_truncated_newest_checkpoint(lives, whole, tmp_path):
    """As after a power failure: the files exist, their content does not."""
    run = tmp_path / "run"
    processes = lives.start(run, hold=5)
    wait_for((run / "holding-0").exists)
    kill(processes)
    processes[0].join(60)
    (run / "go").touch()
    for path in (run / "checkpoint-4").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lives.finish(run)
    assert "checkpoint-4 is damaged (its manifest.json is not readable)" in (run / "output-0.txt").read_text()
    assert facts(run) == facts(whole("plain"))


def test_two_processes_see_what_one_sees(whole):
    """Until the last batch of the epoch, which two processes fill up, so that both have as many."""
    one, two = facts(whole("plain"))[1][0], facts(whole("two-processes"), 2)[1]
    for step in range(5):
        assert sorted(one[step][0][0]) == sorted(two[0][step][0][0] + two[1][step][0][0])


def test_nothing_pickled(whole):
    names = {path.name for path in whole("two-processes").glob("checkpoint-8/*")}
    assert {"manifest.json", "model.safetensors", "training_state.safetensors", "trainer_state.json"} <= names
    assert {"log_state_0.safetensors", "log_state_1.safetensors"} <= names
    assert all(name.endswith((".json", ".safetensors")) for name in names)
    assert all(json.loads(line) for line in (whole("plain") / "metrics.jsonl").read_text().splitlines())
