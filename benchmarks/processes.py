"""How much faster two processes train than one on the same images a step, each process on one core.

    python benchmarks/processes.py

H-GKD as it is by default, of a ResNet-18 by a ViT-S/16 of random weights, or with --masked SparK with 60 % of cells
hidden, whose step is the shortest; crops of 128 px, BatchNorm shared, gradients averaged by gloo; no workers.
Printed are a step's seconds by the clock, and its seconds of all processes together: where other programs use the
machine too, the clock says little. The last row is what the machine allows: as many processes that train on their
share of the images each for itself, so that they share nothing but caches and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, ViTConfig, ViTModel

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig, random_cell_mask
from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

SIZE = 128  # pixels


class Noise(Dataset):
    """Images that cost nothing to read, with masks where there are to be some."""

    def __init__(self, masked: bool):
        self.masked = masked

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        image = {"pixel_values": torch.randn(3, SIZE, SIZE, generator=generator)}
        return image | ({"bool_masked_pos": random_cell_mask((4, 4), 0.6, generator)} if self.masked else {})


class Clock(TrainerCallback):
    """Marks the time after every step."""

    def __init__(self):
        self.marks = []

    def on_step_end(self, args, state, control, **kwargs):
        """By the clock, and of this process."""
        self.marks.append((time.perf_counter(), time.process_time()))


def build(masked: bool) -> HGKDForPreTraining:
    """The model, with its teacher if it has one."""
    student = SparseUNetConfig(encoder_config=student_encoder_config("resnet-18"))
    if masked:
        settings = {"mask_ratio": 0.6, "feature_weight": 0.0, "pixel_weight": 1.0, "decoder": "full"}
        return HGKDForPreTraining(HGKDConfig(student_config=student, image_size=SIZE, **settings))
    vit = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=SIZE)
    teacher = PatchTeacher(ViTModel(vit, add_pooling_layer=False))
    config = HGKDConfig.for_teacher(teacher, student, image_size=SIZE, low_resolution_share=0.0)
    return HGKDForPreTraining(config).attach_teacher(teacher)


def train(masked: bool, images: int, steps: int, bf16: bool, output_dir: str) -> None:
    """One process of a training; the first prints the seconds of a step, but for the first step."""
    torch.set_num_threads(1)
    model, clock = build(masked), Clock()
    args = DistillationArguments(
        output_dir=output_dir,
        max_steps=steps,
        bf16=bf16,
        per_device_train_batch_size=images // int(os.environ["WORLD_SIZE"]),
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(model, args, Noise(masked), callbacks=[clock])
    trainer.train()
    (first, begun), (last, done) = clock.marks[0], clock.marks[-1]
    own = torch.tensor([last - first, done - begun]) / (steps - 1)
    wall, process = trainer.accelerator.gather(own[None]).unbind(1)
    if args.process_index == 0:
        print(json.dumps({"wall": wall.max().item(), "process": process.sum().item()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked", action="store_true", help="SparK in place of H-GKD.")
    parser.add_argument("--images", type=int, default=64, help="Of a step, over all processes.")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="Mixed precision.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output_dir", help=argparse.SUPPRESS)  # of the processes that this one starts
    args = parser.parse_args()
    if args.output_dir:
        train(args.masked, args.images, args.steps, args.bf16, args.output_dir)
        return
    print("| processes | seconds a step | process seconds a step |\n| --- | --- | --- |")
    for count in args.processes:
        print(row(str(count), [launch(count, args)]))
    count = max(args.processes)
    with ThreadPoolExecutor(count) as pool:
        apart = list(pool.map(lambda _: launch(1, args, share=count), range(count)))
    print(row(f"{count}, each for itself", apart))


def launch(processes: int, args: argparse.Namespace, share: int = 1) -> dict[str, float]:
    """A training of `processes` on one part in `share` of the images, and what its first process printed."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        flags = [f"--images={args.images // share}", f"--steps={args.steps}", f"--output_dir={folder}"]
        flags += [f"--{name}" for name in ("masked", "bf16") if getattr(args, name)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        output = subprocess.run([*launcher, __file__, *flags], env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout.splitlines()[-1])


def row(name: str, found: list[dict[str, float]]) -> str:
    """A line of the table: the slowest by the clock, the sum of the processes' seconds."""
    wall, process = max(f["wall"] for f in found), sum(f["process"] for f in found)
    return f"| {name} | {wall:.2f} | {process:.2f} |"


if __name__ == "__main__":
    main()
