"""The card of a teacher's cache: a README that names teacher, views and licence, and tells `datasets` its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitInfo, DatasetCardData

from ..teachers.cache import CacheInfo, TeacherCache
from ..teachers.cache.info import DATA_FILES
from ..training.memory_estimate import gigabytes
from . import readme
from .push import PushOptions, files_of, push_folder
from .sources import License, Source, derive_license, is_repo_id, license_of
from .templates import render

TEMPLATE = Path(__file__).with_name("cache_card.md")
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


def cache_card(info: CacheInfo, license: License | None, reason: str, repo_id: str | None = None) -> str:
    """The README of a cache, by which `datasets` also finds its files.

    Args:
        info: what it holds.
        license: of the cache; None: not settled.
        reason: why it is this one, or why none.
        repo_id: the name that the snippets load; None = a placeholder.
    """
    on_hub = {name: is_repo_id(name) for name in (info.teacher, info.dataset)}
    tags = ["hgkd-hf", "knowledge-distillation", *([f"teacher:{info.teacher}"] if on_hub[info.teacher] else [])]
    metadata = DatasetCardData(
        task_categories=["image-feature-extraction"],
        size_categories=[next((name for most, name in _SIZES.items() if info.rows * info.views < most), "n>10M")],
        source_datasets=[info.dataset] if on_hub[info.dataset] else None,
        tags=tags,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": DATA_FILES}]}],
        **(license.metadata() if license else {}),
    )
    body = render(
        TEMPLATE,
        info=info,
        total=gigabytes(info.bytes),
        license=license,
        license_reason=reason,
        repo=repo_id or "path/to/this/folder",
    )
    return readme.compose(metadata.to_dict(), body)


def write_cache_card(folder: str | Path, teacher: Source, dataset: Source) -> None:
    """Write the README of a cache; what was written into it by hand, a licence too, is kept.

    Args:
        folder: of the cache.
        teacher, dataset: what it was made of, which decide its licence where they can.
    """
    existing = readme.read_local(folder)
    license, reason = _settled(None, existing, teacher, dataset)
    text = readme.merge(cache_card(CacheInfo.load(folder), license, reason), existing)
    Path(folder, readme.FILE).write_text(text, encoding="utf-8")


def push_cache(
    folder: str | Path, repo_id: str, options: PushOptions | None = None, license: License | None = None
) -> CommitInfo:
    """Push a cache as a dataset in one commit (see `push_folder`).

    Args:
        folder: of the cache.
        repo_id: `user/name`.
        options: see `PushOptions`.
        license: None: that of the README.

    Raises:
        ValueError: the cache is not complete, or no licence is settled; or as `push_folder`.
        PushError, FileNotFoundError: as `push_folder`.
    """
    options = replace(options or PushOptions(), repo_type="dataset")
    if options.message == PushOptions.message:
        options = replace(options, message="Push what a teacher saw, cached with hgkd_hf")
    write = cache_readme(folder, license)
    again = f"The cache in {folder} is complete: the same command sends what is missing."
    return push_folder(folder, repo_id, options, lambda head: write(head.repo_id, head.readme()), again=again)


def preview_cache(folder: str | Path, repo_id: str, options: PushOptions, license: License | None = None) -> str:
    """What `push_cache` would push, as text; nothing is sent, and the Hub is not asked."""
    text = cache_readme(folder, license)(repo_id, None)
    files = files_of(Path(folder))
    size = sum(path.stat().st_size for path in files.values())
    branch = f", branch {options.revision}" if options.revision else ""
    return f"to the dataset {repo_id}{branch}: {len(files)} files, {gigabytes(size)}, one commit\n\n{text}"


def cache_readme(folder: str | Path, license: License | None) -> Callable[[str, str | None], str]:
    """(repo_id, README on the Hub or None) -> the README of a whole cache.

    Raises:
        ValueError: it is not complete, or no licence is settled.
    """
    info, local = TeacherCache(folder).info, readme.read_local(folder)
    settled, reason = _settled(license, local, Source(info.teacher), Source(info.dataset))
    if settled is None:
        raise ValueError(f"{reason}: choose the licence of the cache with --license.")
    return lambda repo_id, on_hub: readme.merge(cache_card(info, settled, reason, repo_id), on_hub or local)


def _settled(
    chosen: License | None, existing: str | None, teacher: Source, dataset: Source
) -> tuple[License | None, str]:
    """The licence that was asked for, else that of the README, else what follows from teacher and images."""
    if chosen is not None:
        return chosen, "chosen by its publisher"
    if (written := license_of(existing)) is not None:
        return written, "as set in its README"
    return derive_license([teacher], dataset)
