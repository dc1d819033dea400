"""Kill a small run at random moments, again and again, and compare it with one never interrupted: `make torture`.

Each life of a run goes on from the newest whole checkpoint and is killed after a random time; a run that reaches its
end is compared, losses, samples, masks and weights bit for bit, and the next begins.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from toy_run import Lives, facts, kill, write_images

from hgkd_hf.checkpoints.folders import list_checkpoints
from hgkd_hf.checkpoints.whole_folders import fault


def torture(
    lives: Lives, folder: Path, kills: int, chance: random.Random, world: int = 1, **settings
) -> tuple[int, int]:
    """Kill `kills` times; returns the number of runs that came to their end and of signals that were SIGTERM.

    Raises:
        AssertionError: a life cannot go on, or a run differs from the one never interrupted.
    """
    whole = folder / "whole"
    lives.finish(folder / "first", world, **settings)  # the server imports torch
    began = time.monotonic()
    lives.finish(whole, world, **settings)
    wanted, usual = facts(whole, world), time.monotonic() - began
    assert facts(folder / "first", world) == wanted
    done = finished = terminated = 0
    while done < kills:
        run = folder / f"run-{finished}"
        while not (run / "weights.txt").exists():
            processes = lives.start(run, world, **settings)
            if done < kills:
                processes[0].join(chance.uniform(0, usual))
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            # Of several processes, sometimes one alone is killed: the others must end by themselves. (Not while they
            # find each other: there torch waits for half an hour, and it is the launcher that ends them.)
            alone = chance.random() < 0.3 and all(has_begun(run, *each) for each in enumerate(processes))
            victims = [chance.choice(processes)] if alone else processes
            if done < kills and all(process.is_alive() for process in processes):
                kill(victims, number)
                done += 1
                terminated += number == signal.SIGTERM
            for process in processes:
                process.join(120)
                assert process.exitcode is not None, "a process hangs"
            assert 1 not in {p.exitcode for p in processes} or world > 1, (run / "output-0.txt").read_text()[-3000:]
            if number == signal.SIGKILL and chance.random() < 0.2 and not (run / "weights.txt").exists():
                damage(run, chance)
        assert facts(run, world) == wanted, f"{run} differs from the run never interrupted"
        (run / "weights.txt").unlink()
        lives.finish(run, world, **settings)  # once more, when there is nothing left to do
        assert facts(run, world) == wanted, f"{run} has gone beyond its end"
        finished += 1
        print(f"{done} kills", end="\r", flush=True)
        shutil.rmtree(run)
    return finished, terminated


def has_begun(run: Path, rank: int, process: multiprocessing.Process) -> bool:
    """Whether this life of a process has come to its first step."""
    seen = run / f"seen-{rank}.jsonl"
    return seen.is_file() and f"[{process.pid}, " in seen.read_text()


def damage(run: Path, chance: random.Random) -> None:
    """Cut a file of the newest checkpoint short, if there is an older whole one, as a power failure may."""
    whole = [path for path in list_checkpoints(run) if fault(path) is None]
    if len(whole) > 1:
        file = chance.choice([path for path in whole[-1].iterdir() if path.is_file()])
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# 22 images in batches of 4 are 6 steps an epoch: 12 steps end with one, 11 and 7 within.
KINDS = {
    "one process, 2 workers": {"max_steps": 12, "dataloader_num_workers": 2},
    "an end within an epoch": {"max_steps": 11},
    "accumulated batches": {"max_steps": 7, "gradient_accumulation_steps": 2},
    "a stream, 2 workers": {"max_steps": 11, "streaming": True, "dataloader_num_workers": 2},
    "a shuffled stream": {"max_steps": 11, "streaming": True, "shuffle_buffer": 5},
    "2 processes": {"max_steps": 11, "world": 2},
    "2 processes, a stream": {"max_steps": 11, "world": 2, "streaming": True, "dataloader_num_workers": 2},
}


def main() -> None:
    """Run it and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        lives = Lives(write_images(Path(folder, "images")))
        for number, kind in enumerate(args.kinds):
            kills = (args.kills + number) // len(args.kinds)
            began = time.monotonic()
            part = Path(folder, str(number))
            part.mkdir()
            runs, terminated = torture(lives, part, kills, chance, **KINDS[kind])
            print(
                f"{kind}: {kills} kills ({terminated} by SIGTERM) in {runs} runs, 0 diverged, 0 steps too many, "
                f"0 could not be loaded; {time.monotonic() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
