"""Two processes: unequal last batches, the death of one, who writes."""

import json
import signal
import time

import pytest
from toy_run import kill, seen, wait_for


@pytest.mark.parametrize(
    "settings", [{}, {"dataloader_num_workers": 2}, {"streaming": True, "dataloader_num_workers": 1}]
)
def test_one_dying_ends_the_other_within_a_minute(lives, tmp_path, settings):
    """Its workers, which outlive a first SIGTERM, do not keep it."""
    run = tmp_path / "run"
    processes = lives.start(run, world=2, hold=3, **settings)
    wait_for(lambda: len(list(run.glob("holding-*"))) == 2)
    kill([processes[1]], signal.SIGKILL)
    began = time.monotonic()
    (run / "go").touch()
    processes[0].join(60)
    assert processes[0].exitcode == 1
    assert time.monotonic() - began < 60
    assert not (run / "weights.txt").exists()
    lives.finish(run, world=2, **settings)


def test_unequal_last_batches_and_one_writer(lives, tmp_path):
    """22 images in batches of 2 x 4: the last step of an epoch is filled up with its first images."""
    run = tmp_path / "run"
    lives.finish(run, world=2, max_steps=3, per_device_train_batch_size=4, num_train_epochs=1)
    steps = [entry[-1][0] for process in seen(run, 2) for entry in process.values()]
    assert {len(samples) for samples in steps} == {4}
    assert len(steps) == 6
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([entry for entry in entries if "loss" in entry]) == 1, "each entry once"


def test_machines_that_share_no_folder_are_told_so(lives, tmp_path):
    for process in (processes := lives.start(tmp_path / "run", world=2, shared=False)):
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 1]
    for rank in range(2):
        last = (tmp_path / f"run-{rank}" / f"output-{rank}.txt").read_text().splitlines()[-1]
        assert "of 2 processes, rank 1 does not see what rank 0 writes to " in last
        assert "let --output_dir be one folder that all machines share" in last
        assert not list((tmp_path / f"run-{rank}").glob("checkpoint-*"))
        assert not list((tmp_path / f"run-{rank}").glob(".seen*"))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_stream_is_taken_over_by_other_numbers_of_processes(lives, tmp_path, before, after):
    """After 20 of 22 rows, none came twice; but row 5, which cannot be decoded, shows row 6 a second time."""
    run = tmp_path / "run"
    lives.finish(run, before, streaming=True, max_steps=2)
    shown = [samples for process in seen(run, before) for step in process.values() for samples in step[-1][0]]
    (run / "weights.txt").unlink()
    for path in run.glob("seen-*"):
        path.unlink()
    lives.finish(run, after, streaming=True, max_steps=5)
    shown += [samples for process in seen(run, after) for step in process.values() for samples in step[-1][0]]
    assert len(shown) == 20
    assert len(set(shown)) == 19
    assert f"read by {before} readers, and now by {after}" in (run / "output-0.txt").read_text()
