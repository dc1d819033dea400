"""Open an image dataset, by Hub id or by path, as undecoded images in one known column."""

from __future__ import annotations

import glob
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Image, IterableDataset
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from hgkd_hf.data.access import ImageAccess
from hgkd_hf.data.columns import find_image_column, find_label_column
from hgkd_hf.data.errors import STANDARD_FLAGS, Flags, reason
from hgkd_hf.data.folders import extract, open_image_folder
from hgkd_hf.data.labels import stored_classes
from hgkd_hf.data.source import ImageSource
from hgkd_hf.data.splits import load_split, no_rows, select_split

logger = logging.getLogger(__name__)

_KEY = "__key__"  # of WebDataset: an entry's path in its archive, without extension


def load_images(
    name_or_path: str | os.PathLike[str],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    target_column: str | None = None,
    max_samples: int | None = None,
    allow_remote_images: bool = False,
    flags: Flags = STANDARD_FLAGS,
) -> ImageSource:
    """Open one split of a Hub dataset, a folder of images or of parquet files, a parquet file or a saved dataset.

    Args:
        name_or_path: a Hub id, or a local path: a folder of images (see `open_image_folder`) or a zip archive of one,
            a folder of parquet files, one `.parquet` file, or a folder written by `save_to_disk`. What exists locally
            is read locally, and what can only be a path never goes to the network.
        split: the split's name; `datasets`' slices such as `train[:10%]` work when not streaming from files.
        config_name: the configuration, for datasets that have several.
        revision: branch, tag or commit of a Hub dataset.
        streaming: read rows in order without downloading or converting the dataset first.
        image_column: needed only where several columns hold images.
        label_column: by default the one `ClassLabel` column, else a column `label` or `labels` that can hold one label
            a row, else none. Strings become classes by their sorted names.
        target_column: one that may hold images too, but not those to load: masks.
        max_samples: keep at most so many rows. Rows are shuffled with seed 0 before, because datasets often come in
            class order, in which the first n rows are one class. A stream cannot be shuffled as a whole: it gives
            its first n rows.
        allow_remote_images: open images that rows name by a URL, or by a path outside of the dataset.
        flags: what errors call these arguments.

    Raises:
        ValueError: nothing is there, or the split, a column or the rows are missing, the choice of an image column
            is ambiguous, or files would be left out. The sentence names the value, the choices and the flag to change.
    """
    name = os.fspath(name_or_path)
    if max_samples is not None and max_samples < 1:
        raise ValueError(
            f"max_samples is {max_samples}, but at least 1 is needed: raise {flags.max_samples} or leave it out."
        )
    dataset, access = _open(name, split, config_name, revision, streaming, flags)
    if streaming and dataset.features is None:
        dataset = dataset._resolve_features()  # reads the first rows; there is no public way
    image_column = find_image_column(dataset.features, image_column, name, target_column)
    dataset = dataset.with_format(None)
    for column, feature in dataset.features.items():  # `datasets` would open whatever a row names
        if column == image_column or isinstance(feature, Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    images = dataset.select_columns([image_column])
    if (next(iter(images.take(1)), None) is None) if streaming else (len(images) == 0):
        raise no_rows(name, split, flags)
    label_column = find_label_column(dataset.features, label_column, name, flags)
    if label_column is None and _KEY in dataset.features:
        folder = os.path.dirname(next(iter(dataset.select_columns([_KEY])))[_KEY])
        if folder:
            said = "The folders in the archives of %s, the first %r, are not read as classes: unpack the archives."
            logger.warning(said, name, folder)
    class_names, classes = stored_classes(dataset, label_column)
    if max_samples is not None:
        if not streaming:  # keep_in_memory: the permutation must not be written beside read-only data
            max_samples = min(max_samples, len(dataset))
            dataset = dataset.shuffle(seed=0, keep_in_memory=True)
        dataset = dataset.take(max_samples)
    return ImageSource(
        dataset=dataset,
        image_column=image_column,
        label_column=label_column,
        class_names=class_names,
        name=name,
        revision=revision,
        split=split,
        num_rows=None if streaming else len(dataset),
        access=replace(access, anywhere=allow_remote_images),
        classes=classes,
        flags=flags,
    )


def open_split(
    settings: Any,
    split_field: str = "split",
    samples_field: str = "max_samples",
    labels_field: str | None = "label_column",
    **options: Any,
) -> ImageSource:
    """Open the split that a command's settings name; errors name the flags of that command.

    Args:
        settings: has `dataset`, `dataset_config`, `dataset_revision`, `image_column`, `allow_remote_images` and the
            fields below.
        split_field, samples_field: names of the fields that hold `split` and `max_samples`.
        labels_field: of `label_column`; None where a command needs no labels.
        options: further arguments of `load_images`; they win.

    Raises:
        ValueError: as `load_images`.
    """
    arguments = {
        "split": getattr(settings, split_field),
        "config_name": settings.dataset_config,
        "revision": settings.dataset_revision,
        "image_column": settings.image_column,
        "label_column": None if labels_field is None else getattr(settings, labels_field),
        "max_samples": getattr(settings, samples_field),
        "allow_remote_images": settings.allow_remote_images,
        "flags": Flags(
            split=f"--{split_field}",
            max_samples=f"--{samples_field}",
            label_column=f"--{labels_field or 'label_column'}",
        ),
    }
    return load_images(settings.dataset, **arguments | options)


def _open(
    name: str, split: str, config_name: str | None, revision: str | None, streaming: bool, flags: Flags
) -> tuple[Dataset | IterableDataset, ImageAccess]:
    """The rows of a split, and which files they may name."""
    path = Path(name).expanduser()
    if not path.exists():
        if _can_only_be_path(name):
            raise ValueError(f"There is no file or folder {name!r}: correct --dataset (a local path or a Hub id).")
        cached = os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
        roots = (cached, str(datasets.config.DOWNLOADED_DATASETS_PATH), f"hf://datasets/{name}")
        options = {"path": name, "name": config_name, "revision": revision}
        return load_split(options, name, split, streaming, flags), ImageAccess(roots=roots)
    if path.suffix.lower() == ".zip" and path.is_file():
        path = extract(str(path))
    folder = os.path.abspath(path if path.is_dir() else path.parent)
    access = ImageAccess(folder, (folder,))
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(
                f"{name!r} is a file, but not a .parquet file: give --dataset its folder (another archive than "
                ".zip: unpacked), a .zip archive or a Hub id."
            )
        options = {"path": "parquet", "data_files": glob.escape(str(path))}
        return load_split(options, name, split, streaming, flags), access
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(str(path))
        except Exception as error:  # damaged ones fail in many ways
            raise ValueError(
                f"{name!r} is no data set that `save_to_disk` wrote ({reason(error)}): repair it, remove its "
                f"dataset_dict.json or state.json, or correct --dataset."
            ) from error
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return select_split(splits, name, split, streaming, flags), access
    splits = open_image_folder(Path(folder), name) if config_name is None else None
    if splits is not None:
        return select_split(splits, name, split, streaming, flags), replace(access, roots=None)
    return load_split({"path": str(path), "name": config_name}, name, split, streaming, flags), access


def _can_only_be_path(name: str) -> bool:
    """Whether `name` has not the form of a Hub id (`name` or `namespace/name`)."""
    return name.endswith((".parquet", ".zip")) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)
