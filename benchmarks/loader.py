"""How many images a second one core reads, crops and collates, beside the way of before, and how long a step waits.

    python benchmarks/loader.py
    python benchmarks/loader.py --training

Photographs of 500x375 pixels, as JPEG of quality 90, are read from a dataset on the disk and cropped to 224. Both ways
take turns, and a number is the median of the rounds, in seconds of the process on one thread: other processes of the
machine do not count. "Before" cropped and resized by Pillow, normalised in the worker and stacked float32.

`--training` trains a ResNet-18 with 60 % of the cells hidden, without a teacher, whose step is the shortest, and
prints the share of the time that it waited for images.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Generator, Tensor

from hgkd_hf import HGKDConfig, HGKDForPreTraining, SparseUNetConfig
from hgkd_hf.data import DistillationDataset, ImageTransform, collate, load_images
from hgkd_hf.students.presets import student_encoder_config
from hgkd_hf.training.arguments import available_cores
from hgkd_hf.training.trainer import DistillationArguments, DistillationTrainer

WIDTH, HEIGHT, SIZE = 500, 375, 224
MASKS = {"cell_grid": (7, 7), "mask_ratio": 0.6}


class Before(ImageTransform):
    """The transform as it was: all of it in the worker."""

    def render(self, image: Image.Image, box: tuple[int, int, int, int], flip: bool, generator: Generator) -> Tensor:
        """By Pillow, float32."""
        image = image.crop(box).resize(self.size[::-1], Image.Resampling.BICUBIC)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def write_photographs(folder: Path, count: int) -> None:
    """`count` windows of scikit-learn's two photographs."""
    rows, random = [], np.random.default_rng(0)
    for index in range(count):
        photograph = load_sample_images().images[index % 2]
        top, left = random.integers(0, (photograph.shape[0] - HEIGHT, photograph.shape[1] - WIDTH))
        file = io.BytesIO()
        Image.fromarray(photograph[top : top + HEIGHT, left : left + WIDTH]).save(file, "JPEG", quality=90)
        rows.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image())
    datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(folder)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rates(before: Callable, now: Callable, images: int, rounds: int) -> tuple[float, float]:
    """Images a second of both, each called with the number of the round."""
    times = [(seconds(partial(before, turn)), seconds(partial(now, turn))) for turn in range(rounds + 1)][1:]
    return tuple(images / statistics.median(ways) for ways in zip(*times))


def loader(photographs: Path, images: int, batch_size: int, rounds: int) -> dict[str, tuple[float, float]]:
    """(before, now) images a second of each stage."""
    source = load_images(photographs)
    ways = [DistillationDataset(source, kind(SIZE, train=True), seed=0, **MASKS) for kind in (Before, ImageTransform)]
    rows = [source.dataset[index] for index in range(images)]
    decoded = [source.decode(row) for row in rows[:16]]

    def decode(turn: int) -> None:
        for index in range(images):
            source.decode(rows[index], min_side=ways[0].transform.min_decoded_side)

    def crop(way: DistillationDataset, turn: int) -> None:
        for index in range(images):
            way._views(decoded[index % 16], index, index, turn, "view")

    def cut(way: DistillationDataset, turn: int) -> None:
        for index in range(images):
            way._views(way._decode(rows[index], index), index, index, turn, "view")

    def read(way: DistillationDataset, turn: int) -> list[dict]:
        way.set_epoch(turn)
        return [way[index] for index in range(images)]

    def stack(samples: list[dict], turn: int) -> dict[str, Tensor]:
        return {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in samples[0]}

    few = [read(way, 0) for way in ways]
    samples = [[{**way[i % images]} for i in range(batch_size)] for way in few]
    return {
        "decode": rates(decode, decode, images, rounds),
        "crop, resize, flip": rates(*(partial(crop, way) for way in ways), images, rounds),
        "JPEG to crop": rates(*(partial(cut, way) for way in ways), images, rounds),
        "whole sample, with its row and mask": rates(*(partial(read, way) for way in ways), images, rounds),
        f"collate {batch_size}": rates(
            partial(stack, samples[0]), lambda turn: collate(samples[1]), batch_size, 4 * rounds
        ),
    }


def training(photographs: Path, steps: int, batch_size: int) -> dict[str, float]:
    """The last log of a short training."""
    student = SparseUNetConfig(encoder_config=student_encoder_config("resnet-18"))
    model = HGKDForPreTraining(
        HGKDConfig(student_config=student, mask_ratio=0.6, feature_weight=0, pixel_weight=1, decoder="full")
    )
    data = DistillationDataset(load_images(photographs), ImageTransform(SIZE, train=True), seed=0, **MASKS)
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            dataloader_num_workers=available_cores(),
            logging_steps=steps // 2,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DistillationTrainer(model, args, data)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "data_wait_share" in log]
    return logs[-1]  # the first half of the steps has started the workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="Of a round.")
    parser.add_argument("--batch_size", type=int, default=256, help="Of collate.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="Train, and tell how long it waits for images.")
    parser.add_argument("--steps", type=int, default=20, help="Of that training, of 32 images each.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder, "photographs")
        write_photographs(photographs, args.images)
        if args.training:
            log = training(photographs, args.steps, min(32, args.images))
            print(f"{log['images_per_second']} images a second, {log['data_wait_share']:.1%} of the time waited")
            return
        torch.set_num_threads(1)
        print("| images a second and core | before | now | ratio |\n| --- | --- | --- | --- |")
        for name, (before, now) in loader(photographs, args.images, args.batch_size, args.rounds).items():
            print(f"| {name} | {before:,.0f} | {now:,.0f} | {now / before:.2f} |")


if __name__ == "__main__":
    main()
