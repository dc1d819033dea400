"""Six minutes on a GPU: is it right, how fast is it, what does it wait for, and does a run resume bit for bit?

    make gpu-check                                # or: python benchmarks/gpu_check.py
    make gpu-check ARGS="--device cpu --small"    # shows that all parts work, in about a minute

Writes `gpu_check.json` and `gpu_check.md` to --output_dir. Every part runs in a process of its own with a time limit,
and what it has measured is kept when it fails. Nothing is asked of the network: the package with its extras `dev` is
all that must be there (on a machine without network: `pip download` their wheels into a folder, then `pip install
--no-index --find-links FOLDER`); spconv's tests run where a wheel for CUDA is installed, and skip elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from hgkd_hf import VisibleCells, random_cell_mask, visible
from hgkd_hf.sparse.masking import num_visible_cells

REPOSITORY = Path(__file__).parents[1]
LIMITS = {"tests": 90, "speed": 90, "compile": 90, "profile": 30, "resume": 60}  # seconds: six minutes together
CPU_PATIENCE = 10  # a CPU has other work too: nothing is measured there
MASK_RATIO = 0.6
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")

Save = Callable[[object], None]


def tests(args: argparse.Namespace, save: Save) -> None:
    """The tests that are marked `gpu`: every backend and family against the reference, determinism, no waiting."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/sparse/test_gpu.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    save({**counts, "failures": failures[:20]})
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu: {done.stdout[-1500:]}{done.stderr[-500:]}")


def speed(args: argparse.Namespace, save: Save) -> None:
    """Encoder, and whole step with a ViT-B teacher: dense without mask, masked (SparK's way), cells."""
    rows = []
    for batch in (2,) if args.small else (64, 256):
        for model in ("resnet-18",) if args.small else ("resnet-50", "convnext-tiny"):
            for what, make in (("encoder", encoder_steps), ("step", whole_steps)):
                rows += measured({"what": what, "model": model, "batch": batch}, make(args, model, batch), args)
                save(rows)


def compiled(args: argparse.Namespace, save: Save) -> None:
    """The whole step with teacher and decoder compiled, and the stock network compiled without a mask."""
    batch, model = (2, "resnet-18") if args.small else (64, "resnet-50")
    # The small check shows that the part runs; compilers are slow and not on every CPU.
    compile_with = partial(torch.compile, backend="eager" if args.small else "inductor")
    steps = whole_steps(args, model, batch, compile_with)
    save(measured({"what": "step, compiled", "model": model, "batch": batch}, steps, args))


def profiled(args: argparse.Namespace, save: Save) -> None:
    """One step: its longest kernels, how often the host waits, and how long the device does nothing."""
    from torch.profiler import ProfilerActivity, profile

    step = whole_steps(args, "resnet-18" if args.small else "resnet-50", 2 if args.small else 64)["cells"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device == "cuda" else [])]
    for _ in range(2):
        step()
    with profile(activities=activities) as record:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    own = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda event: getattr(event, own), reverse=True)
    kernels = [event for event in events if event.device_type.name == "CUDA"] if args.device == "cuda" else events
    busy = sum(getattr(event, own) for event in kernels) / 1e6
    save(
        {
            "step_ms": round(1e3 * seconds, 2),
            "kernels" if args.device == "cuda" else "operations": sum(event.count for event in kernels),
            "idle_share": round(max(0.0, 1 - busy / seconds), 3) if args.device == "cuda" else None,
            "waits": {event.key: event.count for event in events if event.key in WAITS},
            "longest": [[k.key[:90], k.count, round(getattr(k, own) / 1e3, 3)] for k in kernels[:15]],
        }
    )


def resumed(args: argparse.Namespace, save: Save) -> None:
    """The quickstart's student for 200 steps, and again from the checkpoint in the middle: the same bits?"""
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    sys.path.insert(0, str(REPOSITORY / "examples"))
    from digits import STUDENT, write_digits

    folder, steps = args.output_dir / "resume", 4 if args.small else 200
    shutil.rmtree(folder, ignore_errors=True)
    write_digits(folder / "digits")
    torch.manual_seed(0)
    vit = ViTConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "teacher")
    settings = {
        "dataset": folder / "digits",
        "teacher": folder / "teacher",
        "teacher_image_size": 32,
        "student": STUDENT.to_json_string(),
        "decoder_width": 64,
        "image_size": 64,
        "mask_ratio": MASK_RATIO,
        "max_steps": steps,
        "save_steps": steps // 2,
        "per_device_train_batch_size": 8 if args.small else 64,
        "use_cpu": args.device == "cpu",
    }

    def distil(run: str, *more: str) -> None:
        flags = [f"--{name}={value}" for name, value in {**settings, "output_dir": folder / run}.items()]
        script = REPOSITORY / "training" / "distill.py"
        done = subprocess.run([sys.executable, script, *flags, *more], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"distill.py: {done.stderr[-1500:]}")

    start = time.perf_counter()
    distil("whole")
    seconds = time.perf_counter() - start
    save({"steps": steps, "seconds": round(seconds, 1)})
    shutil.copytree(folder / "whole", folder / "stopped")
    shutil.rmtree(folder / "stopped" / f"checkpoint-{steps}")
    distil("stopped", "--resume")
    whole, again = (
        load_file(folder / run / f"checkpoint-{steps}" / "model.safetensors") for run in ("whole", "stopped")
    )
    difference = max((whole[name].float() - again[name].float()).abs().max().item() for name in whole)
    save({"steps": steps, "seconds": round(seconds, 1), "equal": difference == 0, "largest_difference": difference})


def masks(args: argparse.Namespace, batch: int) -> tuple[torch.Tensor, int]:
    """Masks of a batch (B, 7, 7), and how many cells of each image are visible."""
    size = image_size(args) // 32
    drawn = torch.stack([random_cell_mask((size, size), MASK_RATIO) for _ in range(batch)])
    return drawn.to(args.device), num_visible_cells((size, size), MASK_RATIO)


def image_size(args: argparse.Namespace) -> int:
    return 64 if args.small else 224


def images(args: argparse.Namespace, batch: int) -> torch.Tensor:
    pixels = torch.randn(batch, 3, image_size(args), image_size(args), device=args.device)
    return pixels.contiguous(memory_format=torch.channels_last)


def mixed_precision(args: argparse.Namespace) -> torch.autocast:
    """bfloat16 on a GPU; many CPUs only imitate it, ten times slower."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda")


def encoder_steps(args: argparse.Namespace, model: str, batch: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of an encoder by each backend; new index tables in every step."""
    from sparse_encoder import encoder

    net, pixels, (mask, count) = encoder(model, args.device), images(args, batch), masks(args, batch)

    def step(backend: str) -> None:
        net.zero_grad()
        with mixed_precision(args):
            if backend == "dense":
                state = net(pixels).last_hidden_state
            else:
                with visible(VisibleCells(mask, count), backend) as sparse:
                    state = net(sparse.enter(pixels)).last_hidden_state
        state.float().square().mean().backward()

    ours = ("cells", "triton") if args.device == "cuda" and find_spec("triton") else ("cells",)
    return {backend: partial(step, backend) for backend in ("dense", "masked", *ours)}


def whole_steps(
    args: argparse.Namespace, model: str, batch: int, compile_with: Callable | None = None
) -> dict[str, Callable[[], None]]:
    """One H-GKD step, optimizer included, with a ViT-B/16-sized teacher: dense is mask ratio 0."""
    from sparse_encoder import encoder_config
    from transformers import ViTConfig, ViTModel

    from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} if args.small else {}
    vit = ViTModel(ViTConfig(image_size=image_size(args), **size), add_pooling_layer=False)
    teacher = PatchTeacher(vit.to(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32))
    if compile_with is not None:
        teacher.model.forward = compile_with(teacher.model.forward)
    pixels, (mask, _) = images(args, batch), masks(args, batch)

    def make(backend: str) -> Callable[[], None]:
        student = SparseUNetConfig(encoder_config=encoder_config(model))
        ratio = 0.0 if backend == "dense" else MASK_RATIO
        # Without a mask there would be no decoder, and low resolution in the first steps: nothing to compare with.
        settings = {"mask_ratio": ratio, "decoder": "truncated", "low_resolution_share": 0.0}
        config = HGKDConfig.for_teacher(teacher, student, image_size=image_size(args), **settings)
        distiller = HGKDForPreTraining(config).attach_teacher(teacher)
        distiller = distiller.to(args.device, memory_format=torch.channels_last).train()
        distiller.student.sparse_backend = "cells" if backend == "dense" else backend
        if compile_with is not None:
            distiller.student.decoder.forward = compile_with(distiller.student.decoder.forward)
        optimizer = torch.optim.AdamW(distiller.parameters(), fused=True)

        def step() -> None:
            with mixed_precision(args):
                loss = distiller(pixels, mask).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {backend: make(backend) for backend in ("dense", "masked", "cells")}


def measured(row: dict, steps: dict[str, Callable[[], None]], args: argparse.Namespace) -> list[dict]:
    """Median milliseconds and peak memory of each step, in turns; None where memory does not suffice."""
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    seconds, peaks = {name: [] for name in steps}, {}
    for turn in range(2 if args.small else 8):
        for name, step in steps.items():
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            wait()
            start = time.perf_counter()
            try:
                step()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            wait()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
                peaks[name] = torch.cuda.max_memory_allocated() / 1e6 if args.device == "cuda" else None
    median = {name: statistics.median(times) if times else None for name, times in seconds.items()}
    return [
        {
            **row,
            "backend": name,
            "ms": own and round(1e3 * own, 2),
            "times_masked": own and median["masked"] and round(median["masked"] / own, 2),
            "peak_mb": peaks.get(name) and round(peaks[name]),
        }
        for name, own in median.items()
    ]


PARTS = {"tests": tests, "speed": speed, "compile": compiled, "profile": profiled, "resume": resumed}


def run_part(name: str, args: argparse.Namespace) -> dict:
    """A part in a process of its own: what it saved, and what went wrong."""
    saved = args.output_dir / f"{name}.json"
    saved.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--device", args.device, "--output_dir", str(args.output_dir)]
    command += ["--small"] if args.small else []
    start, problem, limit = time.perf_counter(), None, LIMITS[name] * (CPU_PATIENCE if args.device == "cpu" else 1)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    log = args.output_dir / f"{name}.log"
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            if child.wait(limit):
                problem = log.read_text().strip()[-2000:]
        except subprocess.TimeoutExpired:
            problem = f"it took more than {limit} seconds"
            os.killpg(child.pid, signal.SIGKILL)  # its own children too
            child.wait()
    result = json.loads(saved.read_text()) if saved.exists() else None
    saved.unlink(missing_ok=True)
    return {
        "ok": problem is None,
        "seconds": round(time.perf_counter() - start, 1),
        "error": problem,
        "result": result,
    }


def machine(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def table(record: dict) -> str:
    """The record as Markdown."""
    lines = [f"# GPU check\n\n{', '.join(f'{key} {value}' for key, value in record['machine'].items())}\n"]
    lines += ["| part | ok | seconds |", "| --- | --- | --- |"]
    parts = record["parts"]
    lines += [f"| {name} | {'yes' if part['ok'] else 'NO'} | {part['seconds']} |" for name, part in parts.items()]
    rows = [row for name in ("speed", "compile") for row in parts.get(name, {}).get("result") or []]
    if rows:
        lines += ["", "| what | model | batch | backend | ms | times masked | peak MB |", "|" + " --- |" * 7]
        lines += [f"| {' | '.join('' if value is None else str(value) for value in row.values())} |" for row in rows]
    for name in ("tests", "profile", "resume"):
        result = parts.get(name, {}).get("result")
        if result:
            longest = result.get("longest", [])
            lines += ["", f"{name}: " + ", ".join(f"{k} {v}" for k, v in result.items() if k != "longest")]
            lines += ["", "| kernel | calls | ms |", "| --- | --- | --- |"] if longest else []
            lines += [f"| `{kernel}` | {calls} | {ms} |" for kernel, calls, ms in longest]
    lines += [f"\n{name} failed:\n\n```\n{part['error']}\n```" for name, part in parts.items() if not part["ok"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps: shows that all parts work")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # the child's side of `run_part`
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: use --device cpu --small to see that the check works.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.part:
        return PARTS[args.part](
            args, lambda result: (args.output_dir / f"{args.part}.json").write_text(json.dumps(result))
        )
    record = {"machine": machine(args.device), "parts": {}}
    for name in args.parts:
        record["parts"][name] = run_part(name, args)
        (args.output_dir / "gpu_check.json").write_text(json.dumps(record, indent=2) + "\n")
        (args.output_dir / "gpu_check.md").write_text(table(record))
    print(table(record))
    sys.exit(0 if all(part["ok"] for part in record["parts"].values()) else 1)


if __name__ == "__main__":
    main()
