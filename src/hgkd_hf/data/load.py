"""Open an image dataset, by Hub id or by path, as undecoded images in one known column."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.compute
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value

# A stream cut out of rows on disk has no files to share among workers; 64 divides among the usual worker counts.
STREAM_SHARDS = 64


@dataclass(frozen=True)
class ImageSource:
    """An opened split of an image dataset, and what a run records about it.

    Attributes:
        dataset: the rows; column `image_column` is cast to `Image(decode=False)`, i.e. yields `{"bytes", "path"}`.
        image_column: name of the column that holds the images.
        label_column: name of the column that holds integer classes, None if there is none.
        class_names: the classes by integer label, None where the dataset does not name them.
        name: the Hub id or path, as the user wrote it.
        revision: the revision that the user asked for (Hub ids only).
        split: name of the split.
        fingerprint: the `datasets` fingerprint of the rows; None when streaming.
        num_rows: number of rows; None when streaming.
    """

    dataset: Dataset | IterableDataset
    image_column: str
    label_column: str | None
    class_names: tuple[str, ...] | None
    name: str
    revision: str | None
    split: str
    fingerprint: str | None
    num_rows: int | None


def load_images(
    name_or_path: str | os.PathLike[str],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    max_samples: int | None = None,
) -> ImageSource:
    """Open one split of a Hub dataset, a folder of images or of parquet files, a parquet file or a saved dataset.

    Args:
        name_or_path: a Hub id, or a local path: an imagefolder (with or without class subfolders), a folder of
            parquet files, one `.parquet` file, or a folder written by `save_to_disk`. What exists locally is read
            locally, and what can only be a path never goes to the network.
        split: the split's name; `datasets`' slices such as `train[:10%]` work when not streaming from files.
        config_name: the configuration, for datasets that have several.
        revision: branch, tag or commit of a Hub dataset.
        streaming: read rows in order without downloading or converting the dataset first.
        image_column: needed only where several columns hold images.
        label_column: by default the one `ClassLabel` column, else an integer column `label` or `labels`, else none.
        max_samples: keep at most so many rows. Rows are shuffled with seed 0 before, because datasets often come in
            class order, in which the first n rows are one class. A stream cannot be shuffled as a whole: it gives
            its first n rows.

    Raises:
        ValueError: nothing is there, or the split, a column or the rows are missing, or the choice of an image column
            is ambiguous. The sentence names the value, the choices and the argument to change.
    """
    name = os.fspath(name_or_path)
    if max_samples is not None and max_samples < 1:
        raise ValueError(
            f"max_samples is {max_samples}, but at least 1 is needed: raise --max_samples or leave it out."
        )
    dataset = _open(name, split=split, config_name=config_name, revision=revision, streaming=streaming)
    if streaming and dataset.features is None:
        dataset = dataset._resolve_features()  # reads the first rows; there is no public way
    image_column = _find_image_column(dataset.features, image_column, name)
    label_column = _find_label_column(dataset.features, label_column, name)
    dataset = dataset.with_format(None).cast_column(image_column, Image(decode=False))
    if (next(iter(dataset.take(1)), None) is None) if streaming else (len(dataset) == 0):
        raise _no_rows(name, split)
    if max_samples is not None:
        if not streaming:  # keep_in_memory: the permutation must not be written beside read-only data
            max_samples = min(max_samples, len(dataset))
            dataset = dataset.shuffle(seed=0, keep_in_memory=True)
        dataset = dataset.take(max_samples)
    label = dataset.features[label_column] if label_column else None
    return ImageSource(
        dataset=dataset,
        image_column=image_column,
        label_column=label_column,
        class_names=tuple(label.names) if isinstance(label, ClassLabel) else None,
        name=name,
        revision=revision,
        split=split,
        fingerprint=None if streaming else dataset._fingerprint,
        num_rows=None if streaming else len(dataset),
    )


def class_names(source: ImageSource) -> tuple[str, ...]:
    """The classes of a labelled source: as the dataset names them, else 0 to its greatest label.

    All labels are read, but of a stream.

    Raises:
        ValueError: there are no labels, one lies outside the classes, or a stream does not name its classes.
    """
    column = source.label_column
    if column is None:
        raise ValueError(f"{source.name!r} has no labels: name their column with --label_column.")
    if source.num_rows is None:
        if source.class_names is None:
            raise ValueError(f"the stream {source.name!r} does not name its classes: drop --streaming.")
        return source.class_names
    labels = pyarrow.compute.min_max(source.dataset.select_columns([column]).with_format("arrow")[:][column])
    lowest, greatest = (labels[key].as_py() for key in ("min", "max"))
    names = source.class_names or tuple(map(str, range(greatest + 1)))
    if lowest < 0 or greatest >= len(names):
        wrong = lowest if lowest < 0 else greatest
        raise ValueError(
            f"split {source.split!r} of {source.name!r} has the label {wrong}, but its classes are 0 to "
            f"{len(names) - 1}: choose another --split, or correct --label_column {column!r}."
        )
    return names


def _open(
    name: str, *, split: str, config_name: str | None, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    path = Path(name).expanduser()
    if not path.exists():
        if _can_only_be_path(name):
            raise ValueError(f"There is no file or folder {name!r}: correct --dataset (a local path or a Hub id).")
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, name, split=split, streaming=streaming)
    options = {"path": name, "name": config_name, "revision": revision}
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"{name!r} is a file, but not a .parquet file: give --dataset its folder or a Hub id.")
        options |= {"path": "parquet", "data_files": str(path)}
    elif path.exists():
        options["path"] = str(path)

    try:
        return datasets.load_dataset(**options, split=split, streaming=streaming)
    except FileNotFoundError as error:  # also DatasetNotFoundError and EmptyDatasetError
        place = "in this folder" if path.exists() else "on the Hub (if it is private or gated: `hf auth login`)"
        raise ValueError(f"No dataset {name!r} was found {place}: correct --dataset or --revision.") from error
    except ConnectionError as error:
        raise ValueError(
            f"Dataset {name!r} is no local path and the Hub cannot be reached: correct --dataset or go online."
        ) from error
    except ValueError as error:
        if "config" in str(error).lower():
            raise ValueError(
                f"{' '.join(str(error).split())} (of {name!r}): choose one with --config_name."
            ) from error
        if "corresponds to no data" in str(error):
            raise _no_rows(name, split) from error
        options["config_name"] = options.pop("name")
        choices = datasets.get_dataset_split_names(**options)
        if set(re.findall(r"(?:^|\+)\s*([\w.-]+)", split)) <= set(choices):
            raise
        raise _missing_split(name, split, choices) from error


def _can_only_be_path(name: str) -> bool:
    """Whether `name` has not the form of a Hub id (`name` or `namespace/name`)."""
    return name.endswith(".parquet") or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)


def _open_saved(path: Path, name: str, *, split: str, streaming: bool) -> Dataset | IterableDataset:
    """Open a folder written by `save_to_disk`; a single dataset that does not know its split counts as `train`."""
    saved = datasets.load_from_disk(str(path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise _missing_split(name, split, splits)
    dataset = splits[split]
    if not streaming:
        return dataset
    return dataset.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(dataset))))


def _missing_split(name: str, split: str, choices) -> ValueError:
    return ValueError(f"{name!r} has no split {split!r}: choose --split from {_listed(choices)}.")


def _no_rows(name: str, split: str) -> ValueError:
    return ValueError(f"Split {split!r} of {name!r} has no rows: choose another with --split or --dataset.")


def _find_image_column(features: Features, wanted: str | None, name: str) -> str:
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{name!r} has no column {wanted!r}: choose --image_column from {_listed(features)}.")
        if not _may_hold_images(features[wanted]):
            raise ValueError(
                f"Column {wanted!r} of {name!r} holds {features[wanted]}, no images: correct --image_column."
            )
        return wanted
    found = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not found:  # parquet files written without `datasets` hold plain bytes
        found = [column for column in ("image", "img") if column in features and _may_hold_images(features[column])]
    if not found:
        raise ValueError(f"No column of {name!r} is of images: name one of {_listed(features)} with --image_column.")
    if len(found) > 1:
        raise ValueError(f"Several columns of {name!r} hold images: choose --image_column from {_listed(found)}.")
    return found[0]


def _may_hold_images(feature: object) -> bool:
    """Whether `Image(decode=False)` can stand for the column: images, bytes, paths or dicts of bytes and path."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def _find_label_column(features: Features, wanted: str | None, name: str) -> str | None:
    def is_integer(feature: object) -> bool:
        return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype)

    if wanted is not None:
        if wanted not in features or not is_integer(features[wanted]):
            integers = [column for column, feature in features.items() if is_integer(feature)]
            raise ValueError(
                f"{name!r} has no integer column {wanted!r}: choose --label_column from {_listed(integers)}."
            )
        return wanted
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    return next(
        (column for column in ("label", "labels") if column in features and is_integer(features[column])), None
    )


def _listed(names) -> str:
    return ", ".join(map(repr, names)) or "(none)"
