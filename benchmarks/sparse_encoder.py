"""How fast encoders run on visible cells: stock dense, masked (SparK's way), cells, spconv; forward and backward.

    python benchmarks/sparse_encoder.py --preset headline --json headline.json
    python benchmarks/sparse_encoder.py --preset full --plot speed.png
    python benchmarks/sparse_encoder.py --step
    python benchmarks/sparse_encoder.py --kernels

Within a case the backends take turns, each with one step that is not timed and one that is; a fresh random mask and
all index tables are made in every step and timed with it. Figures are medians; a ratio is the median of the rounds'
own ratios, so that a drifting machine cancels out. Peak memory is that of one step above the resting process, each
backend in processes of its own; these stray by a tenth.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise

import torch
from transformers import AutoModel, ConvNextConfig, PreTrainedConfig

from hgkd_hf import VisibleCells, random_cell_mask, sparsify, visible
from hgkd_hf.sparse.masking import num_visible_cells
from hgkd_hf.students.presets import student_encoder_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KERNEL_SHAPES = ((8, 64), (4, 128), (2, 256), (1, 512))  # block side and channels of ResNet's stages
CONVNEXT_TINY = ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768])


@dataclass(frozen=True)
class Case:
    """What is timed: all backends on the same network and masks."""

    model: str
    dtype: str
    mask_ratio: float
    image_size: int = 224
    batch_size: int = 8
    backends: tuple[str, ...] = ("dense", "masked", "cells")


def preset(name: str) -> list[Case]:
    if name == "smoke":
        return [Case("resnet-18", "float32", 0.6, image_size=96, batch_size=2)]
    if name == "headline":
        cases = (
            ("resnet-50", "float32", 0.6),
            ("resnet-50", "bfloat16", 0.6),
            ("resnet-18", "float32", 0.6),
            ("resnet-50", "float32", 0.0),
        )
        return [Case(*case, batch_size=16) for case in cases]
    every = ("dense", "masked", "cells", "spconv")
    cases = [
        Case(model, dtype, ratio, backends=every if dtype == "float32" else every[:3])
        for model in ("resnet-18", "resnet-50")
        for dtype in DTYPES
        for ratio in (0.0, 0.4, 0.6, 0.75)
    ]
    cases += [Case("convnext-tiny", dtype, 0.6) for dtype in DTYPES]
    return cases + [Case("resnet-18", dtype, 0.6, image_size=96, batch_size=32) for dtype in DTYPES]


def encoder_config(model: str) -> PreTrainedConfig:
    return CONVNEXT_TINY if model == "convnext-tiny" else student_encoder_config(model)


def encoder(model: str, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    net = sparsify(AutoModel.from_config(encoder_config(model)))
    return net.train().to(device, memory_format=torch.channels_last)


def encoder_step(case: Case, device: str) -> Callable[[str], None]:
    """One forward and backward of the case by a backend."""
    net = encoder(case.model, device)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    grid = (case.image_size // 32, case.image_size // 32)
    count = num_visible_cells(grid, case.mask_ratio)

    def step(backend: str) -> None:
        net.zero_grad()
        masks = [random_cell_mask(grid, case.mask_ratio) for _ in range(case.batch_size)]
        with torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bfloat16"):
            if backend == "dense":
                output = net(images).last_hidden_state
            else:
                with visible(VisibleCells(torch.stack(masks).to(device), count), backend) as sparse:
                    output = net(sparse.enter(images)).last_hidden_state
        output.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def time_in_turns(actions: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each action in each round; one round before them is not counted.

    An action runs twice in its turn and the second run is timed, so that it meets its own memory in allocator and
    caches, as in training, and not its predecessor's.
    """
    seconds = {name: [] for name in actions}
    for round_number in range(repetitions + 1):
        for name, action in actions.items():
            action()
            start = time.perf_counter()
            action()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(reference: list[float], other: list[float]) -> float:
    """How many times as fast as the reference, round by round."""
    return statistics.median(r / o for r, o in zip(reference, other))


def peak_memory_mb(case: Case, backend: str, device: str) -> float:
    """Peak of one step above the resting process, in MB, the median of three fresh processes."""
    command = [
        sys.executable,
        __file__,
        "--device",
        device,
        "--memory",
        json.dumps({**asdict(case), "backend": backend}),
    ]
    results = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    return statistics.median(float(result.strip().splitlines()[-1]) for result in results)


def measure_memory(specification: str, device: str) -> float:
    """The child's side of `peak_memory_mb`. On CPUs by Linux's high-water mark of resident memory."""
    fields = json.loads(specification)
    backend = fields.pop("backend")
    step = encoder_step(Case(**fields), device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        step(backend)
        return (torch.cuda.max_memory_allocated() - resting) / 1e6
    # Libraries allocate their own buffers in a first, small step.
    encoder_step(Case(fields["model"], fields["dtype"], 0.5, image_size=64, batch_size=1), device)(backend)
    ctypes.CDLL(None).malloc_trim(0)  # what building the network has freed would hide as much of the step
    resting = _resident_kb("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the high-water mark
    step(backend)
    return (_resident_kb("VmHWM") - resting) * 1024 / 1e6


def _resident_kb(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def run_cases(cases: list[Case], repetitions: int, device: str, memory: bool) -> list[dict]:
    records = []
    for case in cases:
        step = encoder_step(case, device)
        seconds = {}
        groups = [[backend for backend in case.backends if backend != "spconv"]]
        if "spconv" in case.backends:
            groups.append(["masked", "cells", "spconv"])  # its CPU build is right on one thread only: all on one
        for threads, group in zip((torch.get_num_threads(), 1), groups):
            with _threads(threads):
                timed = time_in_turns({backend: partial(step, backend) for backend in group}, repetitions)
            seconds |= {(backend, threads): (timed[backend], timed["masked"]) for backend in group}
        for (backend, threads), (own, masked) in seconds.items():
            record = {
                "model": case.model,
                "image_size": case.image_size,
                "batch_size": case.batch_size,
                "dtype": case.dtype,
                "mask_ratio": case.mask_ratio,
                "backend": backend,
                "threads": threads,
                "median_s": round(statistics.median(own), 4),
                "ratio_to_masked": round(ratio(masked, own), 3),
                "peak_mb": round(peak_memory_mb(case, backend, device), 1) if memory else None,
            }
            records.append(record)
            print(row(record), flush=True)
    return records


def row(record: dict) -> str:
    peak = "" if record["peak_mb"] is None else f"{record['peak_mb']:.0f}"
    return (
        f"| {record['model']} {record['image_size']} px | {record['dtype']} | {record['mask_ratio']} "
        f"| {record['backend']} | {record['threads']} | {record['median_s'] * 1e3:.0f} "
        f"| {record['ratio_to_masked']:.2f} | {peak} |"
    )


def _threads(count: int):
    if count == torch.get_num_threads():
        return nullcontext()

    class Threads:
        def __enter__(self):
            self.before = torch.get_num_threads()
            torch.set_num_threads(count)

        def __exit__(self, *error):
            torch.set_num_threads(self.before)

    return Threads()


def plot(records: list[dict], path: str) -> None:
    """Speed over the stock dense network against the visible share, with the ideal 1 / share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    dense = {
        (r["model"], r["dtype"], r["mask_ratio"], r["image_size"]): r["ratio_to_masked"]
        for r in records
        if r["backend"] == "dense"
    }
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for r in records:
        key = (r["model"], r["dtype"], r["mask_ratio"], r["image_size"])
        if r["backend"] in ("masked", "cells") and r["threads"] != 1 and key in dense and r["image_size"] == 224:
            line = lines.setdefault((f"{r['model']} {r['dtype']}", r["backend"]), [])
            line.append((1 - r["mask_ratio"], r["ratio_to_masked"] / dense[key]))
    colours = {network: f"C{index}" for index, network in enumerate(dict.fromkeys(network for network, _ in lines))}
    for (network, backend), points in lines.items():
        style = {"linestyle": "-", "marker": "o"} if backend == "cells" else {"linestyle": ":", "marker": "x"}
        axis.plot(*zip(*sorted(points)), color=colours[network], label=f"{network}, {backend}", **style)
    shares = [0.25, 0.4, 0.6, 1.0]
    axis.plot(shares, [1 / share for share in shares], color="black", label="ideal", linewidth=1)
    axis.set(xlabel="visible share", ylabel="speed over the stock dense network")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def whole_step(repetitions: int, device: str, dtype: str, batch_size: int = 8) -> None:
    """Where the time of one H-GKD step goes: ResNet-50 student, ViT-S/16-sized teacher in bfloat16."""
    from PIL import Image
    from transformers import ViTConfig, ViTModel

    from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
    from hgkd_hf.data import ImageTransform, sample_generator

    vit = ViTModel(ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536), add_pooling_layer=False)
    teacher = PatchTeacher(vit.to(device, torch.bfloat16))
    student = SparseUNetConfig(encoder_config=student_encoder_config("resnet-50"))
    config = HGKDConfig.for_teacher(teacher, student, mask_ratio=0.6)
    model = HGKDForPreTraining(config).attach_teacher(teacher).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    transform = ImageTransform(224, train=True)
    picture = Image.effect_noise((500, 375), 64).convert("RGB")
    parts: dict[str, dict[str, list[float]]] = {"masked": {}, "cells": {}}

    def step(backend: str) -> None:
        model.student.sparse_backend = backend
        times = parts[backend]
        marks = [("", time.perf_counter())]

        def mark(name: str) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append((name, time.perf_counter()))

        views = [transform(picture, sample_generator(0, 0, index, "view")) for index in range(batch_size)]
        pixels = transform.normalize(torch.stack(views).to(device))
        mask = torch.stack([random_cell_mask(config.cell_grid, config.mask_ratio) for _ in pixels]).to(device)
        mark("data")
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            targets = model.teach(pixels, mask).feature_maps
            mark("teacher")
            _, _, normalised = model.student.encode(pixels, VisibleCells(mask), False)
            mark("encoder, forward")
            inputs = {stride: feature.detach().requires_grad_() for stride, feature in normalised.items()}
            decoded = model.student.decoder(inputs, VisibleCells(mask))
            loss = torch.nn.functional.smooth_l1_loss(model.feature_heads[0](decoded).float(), targets[0], beta=2.0)
        mark("decoder and loss, forward")
        loss.backward()
        mark("decoder and loss, backward")
        torch.autograd.backward(list(normalised.values()), [feature.grad for feature in inputs.values()])
        mark("encoder, backward")
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        for (_, before), (name, after) in pairwise(marks):
            times.setdefault(name, []).append(after - before)

    total = time_in_turns({backend: partial(step, backend) for backend in parts}, repetitions)
    print(f"one H-GKD step, {dtype}, ms\n\n| part | masked | cells |\n| --- | --- | --- |")
    for name in parts["cells"]:
        masked, cells = (1e3 * statistics.median(parts[backend][name][3::2]) for backend in parts)
        print(f"| {name} | {masked:.0f} | {cells:.0f} |")
    masked, cells = (1e3 * statistics.median(total[backend]) for backend in parts)
    print(f"| whole step | {masked:.0f} | {cells:.0f} |\n\nratio {ratio(total['masked'], total['cells']):.2f}")


def kernels(repetitions: int) -> None:
    """The ways of the cells backend to convolve, by block side: speed over the dense convolution."""
    from hgkd_hf.sparse import cell_kernels

    cells = VisibleCells(torch.stack([random_cell_mask((7, 7), 0.6) for _ in range(8)]))
    # From which blocks on it convolves, and from which on the library makes the weight's gradient: always or never.
    ways = {"convolution": (1, 1), "its weight gradient by taps": (1, 1000), "products": (1000, 1000)}
    print(f"| kernel | block | channels | dtype | {' | '.join(ways)} |\n|{' --- |' * (4 + len(ways))}")
    chosen = cell_kernels.CONVOLUTION_BLOCK, cell_kernels.WEIGHT_GRADIENT_BLOCK
    cases = ((k, dtype, *shape) for k in (3, 1) for dtype in DTYPES.values() for shape in KERNEL_SHAPES)
    for kernel, dtype, block, channels in cases:
        outputs = channels if kernel == 3 else 4 * channels  # as in a bottleneck
        layer = torch.nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
        conv = sparsify(torch.nn.Sequential(layer)).to(dtype=dtype, memory_format=torch.channels_last)
        maps = torch.randn(8, channels, 7 * block, 7 * block, dtype=dtype)
        maps = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
        rows = cells.gather(maps.detach()).requires_grad_()

        def action(thresholds: tuple[int, int] | None, conv=conv, maps=maps, rows=rows) -> None:
            x = maps
            if thresholds is not None:
                cell_kernels.CONVOLUTION_BLOCK, cell_kernels.WEIGHT_GRADIENT_BLOCK = thresholds
                x = rows
            with nullcontext() if thresholds is None else visible(cells):
                y = conv(x)
            torch.autograd.grad(y, (x, *conv.parameters()), torch.ones_like(y))

        actions = {name: partial(action, thresholds) for name, thresholds in {"dense": None, **ways}.items()}
        seconds = time_in_turns(actions, repetitions)
        speeds = " | ".join(f"{ratio(seconds['dense'], seconds[name]):.2f}" for name in ways)
        print(f"| {kernel}x{kernel} | {block} | {channels} | {str(dtype)[6:]} | {speeds} |", flush=True)
    cell_kernels.CONVOLUTION_BLOCK, cell_kernels.WEIGHT_GRADIENT_BLOCK = chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("smoke", "headline", "full"), default="headline")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="write the records to this file")
    parser.add_argument("--plot", help="write the plot to this file")
    parser.add_argument("--no_memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--step", action="store_true", help="instead: where the time of one H-GKD step goes")
    parser.add_argument("--kernels", action="store_true", help="instead: the convolution kernels by block side")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(measure_memory(args.memory, args.device))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    if args.step:
        for dtype in DTYPES:
            whole_step(args.repetitions, args.device, dtype)
    elif args.kernels:
        kernels(args.repetitions)
    else:
        print("| model | dtype | mask ratio | backend | threads | ms | times masked | peak MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        records = run_cases(preset(args.preset), args.repetitions, args.device, not args.no_memory)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(records, file, indent=1)
        if args.plot:
            plot(records, args.plot)


if __name__ == "__main__":
    main()
