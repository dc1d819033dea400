"""Run a frozen teacher once over several views of every image, and keep what it sees for any number of students.

    hgkd teach --teacher facebook/dinov2-small --dataset path/to/images --views 8 --output_dir caches/mine
    accelerate launch -m hgkd_hf.cli.teach --teacher facebook/dinov2-small --dataset path/to/images

--dry_run tells how many bytes it takes, and how long, before anything is written. The same command resumes after a
stop; with larger --views it adds views. `hgkd distill --teacher_cache caches/mine --dataset path/to/images` then
trains a student, and `hgkd publish caches/mine --repo_id user/name` publishes the cache as a dataset.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.teaching import TeachSettings
from .choices import spell_out_teacher
from .errors import run_script
from .output import hush, show_facts
from .parser import answer_help
from .processes import join_processes, on_main_process
from .recipe import parse_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.cached import TeacherViews
    from ..teachers.cache import CacheInfo
    from ..teachers.cache.info import Shard


def main(arguments: list[str] | None = None) -> dict:
    answer_help((TeachSettings,), "teach", __doc__, arguments)
    arguments, defaults = spell_out_teacher(arguments)
    (settings,) = parse_recipe((TeachSettings,), arguments, __doc__, "teach", defaults)
    hush()
    from ..checkpoints.lock import run_lock
    from ..hub.cache_card import write_cache_card
    from ..hub.sources import find_source
    from ..teachers.cache import begin_cache, check_folder, write_shards
    from ..training.arguments import warn_of_slow_bf16

    accelerator, folder = join_processes(), Path(settings.output_dir)
    if settings.teacher_dtype == "bfloat16":
        warn_of_slow_bf16(accelerator.device.type == "cpu", "--teacher_dtype float32")
    views, teacher = settings.teacher_views(), settings.load_teacher()
    info = settings.cache_info(teacher)
    see = settings.eyes(teacher, info, accelerator.device)
    if settings.dry_run:
        return on_main_process(accelerator, lambda: dry_run(settings, info, views, see, accelerator.num_processes))

    on_main_process(accelerator, lambda: check_folder(folder, info))
    with run_lock(folder) if accelerator.is_main_process else nullcontext():
        start = time.perf_counter()
        shards = on_main_process(accelerator, lambda: begin_cache(folder, info))
        check_space(folder, info, shards)
        own = shards[accelerator.process_index :: accelerator.num_processes]
        sizes = {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
        write_shards(folder, info, own, views, see, **sizes, progress=accelerator.is_main_process)
        accelerator.wait_for_everyone()
    result = {"shards": len(shards), "bytes": info.bytes, "seconds": round(time.perf_counter() - start, 1)}
    if accelerator.is_main_process:
        sources = (
            (settings.teacher, "model", info.teacher_revision),
            (settings.dataset, "dataset", info.dataset_revision),
        )
        write_cache_card(folder, *(find_source(*source) for source in sources))
        show_facts(
            describe(info) | {"written": f"{len(shards)} of {len(info.shards)} shards in {result['seconds']} s"}
        )
    return result


def check_space(folder: Path, info: CacheInfo, shards: Sequence[Shard]) -> None:
    """Refuse to write what does not fit on the disk.

    Raises:
        ValueError: it does not.
    """
    from ..training.memory_estimate import gigabytes

    needed = sum(shard.stop - shard.start for shard in shards) * info.bytes_per_image
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the cache needs {gigabytes(needed)} more, but {gigabytes(free)} are free on the disk of {folder}: free "
            "some, or choose another --output_dir, fewer --views, --storage int8, or a smaller --pooled_grid."
        )


def describe(info: CacheInfo) -> dict[str, str]:
    """What the cache is, one fact an entry."""
    from ..training.memory_estimate import gigabytes

    layers, pixels = ", ".join(map(str, info.teacher_layers)), "x".join(map(str, info.teacher_image_size))
    view, grid = gigabytes(info.rows * info.bytes_per_image), " x ".join(map(str, info.grid))
    return {
        "teacher": f"{info.teacher}, layers {layers} at {pixels} px, {info.teacher_dtype}",
        "images": f"{info.rows:,} of {info.dataset}, split {info.split}, views at {info.transform['image_size']} px",
        "maps": f"{info.channels} channels, {grid} positions, {info.storage}: {info.bytes_per_image:,} bytes",
        "size": f"{view} a view, {gigabytes(info.bytes)} for {info.views} view(s)",
    }


def dry_run(
    settings: TeachSettings, info: CacheInfo, views: TeacherViews, see: Callable[[Tensor], Tensor], processes: int
) -> dict:
    """Print what the cache would be: its size, and how long it takes by a measured batch. Nothing is written."""
    from ..teachers.cache import shards_to_write
    from ..training.memory_estimate import gigabytes

    shards = shards_to_write(Path(settings.output_dir), info)
    images = sum(shard.stop - shard.start for shard in shards)
    per_image = measure(settings, views, see)
    seconds = images * per_image / processes
    disk = next(path for path in Path(settings.output_dir).absolute().parents if path.is_dir())
    show_facts(
        describe(info)
        | {
            "to write": f"{len(shards)} of {len(info.shards)} shards; {gigabytes(shutil.disk_usage(disk).free)} free",
            "time": f"about {timedelta(seconds=round(seconds))}, at {processes / per_image:.3g} views a second",
            "dry run": "all checks passed; nothing was written",
        }
    )
    return {"bytes": info.bytes, "bytes_per_view": info.rows * info.bytes_per_image, "seconds": seconds}


def measure(settings: TeachSettings, views: TeacherViews, see: Callable[[Tensor], Tensor]) -> float:
    """Seconds a view, by the second of two equal batches."""
    from torch.utils.data import default_collate

    keys = [(0, row % len(views)) for row in range(settings.batch_size)]
    for _ in range(2):
        start = time.perf_counter()
        batch = default_collate([views[key] for key in keys])
        read = time.perf_counter() - start
        see(batch["pixel_values"]).cpu()
        seen = time.perf_counter() - start - read
    # Workers read while the teacher sees.
    return (max(read / settings.num_workers, seen) if settings.num_workers else read + seen) / len(keys)


if __name__ == "__main__":
    run_script(main)
