"""One split of an opened dataset, and a sentence for whatever is in the way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import datasets
from datasets import Dataset, IterableDataset, ReadInstruction

from hgkd_hf.data.errors import Flags, listed, reason
from hgkd_hf.data.folders import lists_its_files, walk

# A stream cut out of rows on disk has no files to share among workers; 64 divides among the usual worker counts.
STREAM_SHARDS = 64


def select_split(
    splits: Mapping[str, Dataset], name: str, split: str, streaming: bool, flags: Flags
) -> Dataset | IterableDataset:
    """A split, a slice (`train[:10%]`) or a sum (`train+test`) of some.

    Raises:
        ValueError: there is none, or the slice cannot be understood.
    """
    if not named_splits(split) <= set(splits):
        raise _missing_split(name, split, splits, flags)
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({key: len(rows) for key, rows in splits.items()})
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"split is {split!r}, which is not a slice of a split ({reason(error)}): correct {flags.split}."
        ) from error
    pieces = [
        splits[part.splitname].select(range(len(splits[part.splitname]))[part.from_ : part.to]) for part in parts
    ]
    dataset = pieces[0] if len(pieces) == 1 else datasets.concatenate_datasets(pieces)
    if not streaming:
        return dataset
    return dataset.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(dataset))))


def load_split(options: dict, name: str, split: str, streaming: bool, flags: Flags) -> Dataset | IterableDataset:
    """A split by `datasets.load_dataset(**options)`.

    Raises:
        ValueError: it is not there, `datasets` fails, or would leave out files of a local folder.
    """
    is_local = os.path.exists(options["path"])
    try:
        left_out = _files_left_out(options["path"]) if is_local and options.get("name") is None else []
        if not left_out:
            return datasets.load_dataset(**options, split=split, streaming=streaming)
    except FileNotFoundError as error:  # also DatasetNotFoundError and EmptyDatasetError
        if is_local:
            raise ValueError(f"{name!r} holds no images or tables: correct --dataset.") from error
        raise ValueError(
            f"No dataset {name!r} was found on the Hub (if it is private or gated: `hf auth login`): correct "
            "--dataset or --dataset_revision."
        ) from error
    except ConnectionError as error:
        raise ValueError(
            f"Dataset {name!r} is not a local path and the Hub cannot be reached: correct --dataset or go online."
        ) from error
    except Exception as error:  # `datasets` passes on whatever the readers of its formats raise
        if isinstance(error, ValueError) and "config" in str(error).lower():
            raise ValueError(
                f"{' '.join(str(error).split())} (of {name!r}): choose one with --dataset_config."
            ) from error
        if "corresponds to no data" in str(error):
            raise no_rows(name, split, flags) from error
        choices = _splits_of(options)
        if choices and not named_splits(split) <= set(choices):
            raise _missing_split(name, split, choices, flags) from error
        raise ValueError(f"{name!r} cannot be read ({reason(error)}): repair it, or correct --dataset.") from error
    raise ValueError(
        f"`datasets` sorts the files of {name!r} into splits by words in their names, and would leave out "
        f"{len(left_out)}: {listed(sorted(left_out), most=3)}. Name every file after a split, or give --dataset "
        "a folder whose files belong to one."
    )


def no_rows(name: str, split: str, flags: Flags) -> ValueError:
    """The error for a split without rows."""
    return ValueError(f"Split {split!r} of {name!r} has no rows: choose another with {flags.split} or --dataset.")


def _missing_split(name: str, split: str, choices: Iterable[str], flags: Flags) -> ValueError:
    return ValueError(f"{name!r} has no split {split!r}: choose {flags.split} from {listed(choices)}.")


def named_splits(split: str) -> set[str]:
    """The splits that a slice (`train[:10%]`) or sum (`train+test`) is of."""
    return set(re.findall(r"(?:^|\+)\s*([\w.-]+)", split))


def _splits_of(options: dict) -> list[str]:
    """The splits of a dataset, none if they cannot be found out."""
    options = {key: value for key, value in options.items() if key != "name"} | {"config_name": options.get("name")}
    try:
        return datasets.get_dataset_split_names(**options)
    except Exception:  # the first error says more
        return []


def _files_left_out(folder: str) -> set[str]:
    """Files of a local folder, by their paths below it, that are like those that `datasets` reads, but not read."""
    if not os.path.isdir(folder) or lists_its_files(folder):
        return set()
    read = {
        os.path.realpath(file)
        for files in datasets.load_dataset_builder(folder).config.data_files.values()
        for file in files
    }
    kinds = {os.path.splitext(file)[1].lower() for file in read}
    return {
        os.path.join(*parts)
        for parts, file in walk(folder)
        if os.path.splitext(file)[1].lower() in kinds and os.path.realpath(file) not in read
    }
