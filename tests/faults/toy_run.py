"""A small run and its many lives: each one a process forked from a server that has torch imported already."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import ResNetConfig, ViTConfig, ViTModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.data import DistillationDataset, ImageTransform, StreamingDistillationDataset, load_images
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

torch.set_num_threads(1)
datasets.disable_progress_bars()

TIMES = ("images_per_second", "data_wait_share")
STUDENT = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 16, 32], "depths": [1, 1, 1]}
STUDENT["layer_type"] = "basic"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}


def write_images(folder: Path, count: int = 22, shards: int = 2, seed: int = 0) -> Path:
    """Parquet files of `count` noisy 24-px pictures, the sixth of which cannot be decoded."""
    import io

    from PIL import Image

    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        buffer = io.BytesIO()
        pixels = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"bytes": b"broken" if index == 5 else buffer.getvalue(), "path": f"{index}.png"})
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        table.shard(shards, shard, contiguous=True).to_parquet(folder / f"train-{shard}.parquet")
    return folder


def build_model() -> HGKDForPreTraining:
    """A student of 64-px images and 4 x 4 cells, and its teacher."""
    torch.manual_seed(0)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=64, patch_size=16
    )
    teacher = PatchTeacher(ViTModel(vit, add_pooling_layer=False), layers=(-1,), name_or_path="toy")
    encoder = ResNetConfig(embedding_size=16, hidden_sizes=[16, 16, 32], depths=[1, 1, 1], layer_type="basic")
    student = SparseUNetConfig(encoder_config=encoder, decoder_width=16)
    return HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student, image_size=64)).attach_teacher(teacher)


class RecordingTrainer(DistillationTrainer):
    """Writes what every step saw, and makes the loss depend on global generators as dropout would."""

    hold, noise = -1, 0.1

    def compute_loss(self, model, inputs, **kwargs):
        """Line by line: step, samples, digest of pixels and masks."""
        digest = hashlib.sha256(inputs["pixel_values"].numpy().tobytes() + inputs["bool_masked_pos"].numpy().tobytes())
        run, rank = Path(self.args.output_dir), self.args.process_index
        if self.state.global_step == self.hold:  # until the test that wants it so lets go
            (run / f"holding-{rank}").touch()
            wait_for((run / "go").exists)
        entry = [os.getpid(), self.state.global_step, inputs["sample_index"].tolist(), digest.hexdigest()]
        with (run / f"seen-{rank}.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        loss = super().compute_loss(model, inputs, **kwargs)
        return loss * (1 + self.noise * torch.rand(()))


def live(run: str, images: str, settings: dict, rank: int = 0, world: int = 1, port: int = 0) -> None:
    """One life: go on from the newest checkpoint if there is one, and train to the end."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for workers, as without this server
    os.environ |= ENVIRONMENT
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Path(run).mkdir(exist_ok=True)
    sys.stdout = sys.stderr = open(Path(run, f"output-{rank}.txt"), "a", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    settings = {
        "per_device_train_batch_size": 4 // world,
        "max_steps": 8,
        "save_steps": 2,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        **settings,
    }
    streaming, hold = settings.pop("streaming", False), settings.pop("hold", -1)
    buffer, noise = settings.pop("shuffle_buffer", 0), settings.pop("noise", RecordingTrainer.noise)
    args = DistillationArguments(output_dir=run, save_strategy="steps", disable_tqdm=True, **settings)
    model = build_model()
    kind = DistillationDataset
    if streaming:
        kind = partial(StreamingDistillationDataset, shuffle_buffer=buffer)
    data = kind(
        load_images(images, streaming=streaming),
        ImageTransform(64, train=True),
        seed=0,
        cell_grid=model.config.cell_grid,
        mask_ratio=0.6,
        skipped_log=Path(run, "skipped.tsv"),
    )
    trainer = RecordingTrainer(model, args, data)
    trainer.hold, trainer.noise = hold, noise
    trainer.train(resume_from_checkpoint=any(Path(run).glob("checkpoint-*[0-9]")) or None)
    if rank == 0:
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
        Path(run, "weights.txt").write_text(digest.hexdigest())


class Lives:
    """Starts lives of one run."""

    def __init__(self, images: Path):
        # The server finds this module by the path, and must see no accelerator and no Hub.
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.images = str(images)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["toy_run"])

    def start(self, run: Path, world: int = 1, shared: bool = True, **settings) -> list[multiprocessing.Process]:
        """Start a life of `world` processes, each the head of its own group, in one `shared` folder or in its own."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        runs = [str(run) if shared else f"{run}-{rank}" for rank in range(world)]
        arguments = [(runs[rank], self.images, settings, rank, world, port) for rank in range(world)]
        processes = [self.context.Process(target=live, args=each) for each in arguments]
        for process in processes:
            process.start()
        return processes

    def finish(self, run: Path, world: int = 1, **settings) -> None:
        """Live to the end."""
        processes = self.start(run, world, **settings)
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, (codes, Path(run, "output-0.txt").read_text()[-3000:])


def kill(processes: list[multiprocessing.Process], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes and all that they started."""
    for process in processes:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            process.kill() if number == signal.SIGKILL else process.terminate()


def wait_for(condition, seconds: float = 120.0) -> None:
    """Wait until `condition()` holds.

    Raises:
        TimeoutError: it does not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("nothing happened in time")
        time.sleep(0.01)


def losses(run: Path) -> list[dict]:
    """The training entries of the log, without times."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in entry.items() if name not in TIMES} for entry in entries if "loss" in entry
    ]


def seen(run: Path, world: int = 1) -> list[dict[int, list]]:
    """For each process, what each step saw; of a step done twice, the last time."""
    found = []
    for rank in range(world):
        steps: dict[int, list] = {}
        previous = None
        for line in (run / f"seen-{rank}.jsonl").read_text().splitlines():
            try:
                life, step, *entry = json.loads(line)
            except ValueError:  # cut short by a kill
                continue
            steps[step] = [*steps[step], entry] if (life, step) == previous else [entry]
            previous = life, step
        found.append(steps)
    return found


def facts(run: Path, world: int = 1) -> tuple:
    """All that a run killed and resumed must share with one never interrupted."""
    return losses(run), seen(run, world), (run / "weights.txt").read_text()
