"""A folder of images as people have it: which files are images, and the split and class that their folders name.

`datasets` itself assigns files to splits by words in any file or folder name, and silently leaves out the rest: of
the class folders bus, car and train only the last is read. Here every image below a folder is a row, or a sentence
says why not. (Its builder with the files listed one by one would do, but for 0.5 ms a file, and not with `[` in a
name.)
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import datasets
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub import metadata_load
from PIL import Image as PILImage
from yaml import YAMLError

from hgkd_hf.data.errors import listed, reason

logger = logging.getLogger(__name__)

SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
# What may stand beside such a word: train_images is a split, "model train" a class.
_NEUTRAL_WORDS = {"", "set", "split", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures"}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# Folders of masks, and of the images that they are of.
_MASKS = {"mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth", "seg"}
_MASKS |= {"segmentation", "segmentations", "segmentationclass", "segmentationobject", "trimap", "trimaps"}
_MASKED = (_NEUTRAL_WORDS - {""}) | {"jpegimages", "rgb", "input", "inputs", "original", "originals"}
_SKIPPED_FOLDERS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
_SYSTEM_FILES = {"Thumbs.db", "desktop.ini", "Icon\r"}
_METADATA_FILES = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
_TABLES = {".parquet", ".arrow"}
_NO_DATA = {".txt", ".xml", ".md", ".yaml", ".yml", ".log", ".py"}
# Registered by Pillow, which cannot read them by itself.
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}


def split_named(folder: str) -> str | None:
    """The split that a folder's name stands for (`train`, `val_2017`, `TestImages`), None for any other name."""
    words = _words(folder)
    return next((split for split, names in SPLIT_WORDS.items() if words and words <= names), None)


def _words(folder: str) -> set[str]:
    """The words of a folder's name but neutral ones, which may follow that of a split at once (`trainset`)."""
    words = set()
    for word in re.split(r"[-._ 0-9]+", folder.lower()):
        found = (begin for begin in _SPLIT_OF_WORD if word.startswith(begin) and word[len(begin) :] in _NEUTRAL_WORDS)
        words.add(next(found, word))
    return words - _NEUTRAL_WORDS


def _splits_alike(folders: Iterable[str]) -> dict[str, str]:
    """The folders that are named alike but for the split (`seg_train`, `seg_test`), and their splits."""
    alike = defaultdict(dict)
    for folder in folders:
        words = _words(folder)
        found = words & _SPLIT_OF_WORD.keys()
        if len(found) == 1 and words != found:
            alike[frozenset(words - found)][folder] = _SPLIT_OF_WORD[min(found)]
    return next((splits for splits in alike.values() if len(set(splits.values())) > 1), {})


File = tuple[tuple[str, ...], str]  # the parts of its path below a folder, and the path


@dataclass
class _Listing:
    """The files below a folder, each by its path parts below it."""

    images: dict[tuple[str, ...], str] = field(default_factory=dict)
    metadata: dict[tuple[str, ...], str] = field(default_factory=dict)
    archives: dict[tuple[str, ...], str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    empty_folders: list[str] = field(default_factory=list)


def open_image_folder(path: Path, name: str) -> dict[str, Dataset] | None:
    """The splits of a folder of images; None if it holds none, or tables, or says itself which files it consists of.

    Links are followed; hidden files and folders are left out. Top-level folders are splits if all images lie in ones
    that are named as splits; otherwise all is one split `train`. Within a split, the folders that hold the images are
    its classes, if they are at least two, lie equally deep and have different names. Of `metadata.csv`, `.jsonl` or
    `.parquet` every line is a row, with its columns. A zip archive counts as a folder of its name, unless images lie
    outside of archives.

    Raises:
        ValueError: a split lies beside images that belong to none, an archive or metadata file cannot be read, or a
            link leads nowhere.
    """
    if lists_its_files(path):
        return None
    listing = _list_files(path, name)
    if listing.tables:
        if listing.images:
            logger.warning(
                "%s holds %d parquet or arrow files, which are read, and %d image files, which are not.",
                name,
                len(listing.tables),
                len(listing.images),
            )
        return None
    if not listing.images:
        for parts, archive in list(listing.archives.items()):
            inner = _list_files(extract(archive), archive)
            stem = (*parts[:-1], PurePath(parts[-1]).stem)
            listing.images |= {(*stem, *below): file for below, file in inner.images.items()}
            listing.metadata |= {(*stem, *below): file for below, file in inner.metadata.items()}
            listing.others += inner.others
            del listing.archives[parts]
    if not listing.images:
        if listing.others and all(kind in _NO_DATA or "." not in kind for kind in listing.others):
            kinds = listed(kind for kind, _ in listing.others.most_common(5))
            raise ValueError(
                f"{name!r} holds no images or tables, only files such as {kinds}: correct --dataset, or give "
                "the images the extension of their format."
            )
        return None
    _tell_unread(listing, name)
    splits = _group_by_split(_without_wrapper(list(listing.images.items())), name)
    if listing.metadata:
        return _read_metadata(listing, splits, name)
    _refuse_masks(list(listing.images), name)
    classes = {split: _classes(files, split, name) for split, files in splits.items()}
    names = sorted({label for labels in classes.values() if len(set(labels)) > 1 for label in labels})
    return {split: _rows(files, classes[split], names) for split, files in splits.items()}


def lists_its_files(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the README of a dataset that says which files belong to which split."""
    try:
        return "configs" in (metadata_load(Path(folder, "README.md")) or {})
    except (OSError, ValueError, YAMLError):
        return False


def extract(archive: str) -> Path:
    """The folder to which `datasets` unpacks a zip archive, in its cache and once.

    Raises:
        ValueError: it is no zip archive, or cannot be unpacked.
    """
    try:
        folder = Path(datasets.DownloadManager().extract(archive))
    except Exception as error:  # broken and encrypted archives fail in many ways
        raise ValueError(
            f"The archive {archive!r} cannot be unpacked ({reason(error)}): repair or remove it."
        ) from error
    if not folder.is_dir():
        raise ValueError(f"{archive!r} is not a zip archive: repair or remove it.")
    return folder


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_files(root: Path, name: str) -> _Listing:
    listing = _Listing()
    extensions = {
        extension
        for extension, format in PILImage.registered_extensions().items()
        if format in PILImage.OPEN and format not in _STUBS
    }
    for parts, file in walk(root, listing.empty_folders):
        if not _is_text(file):
            raise ValueError(
                f"The name {os.path.join(*parts)!a} in {name!r} is not UTF-8: rename the file or its folder."
            )
        suffix = PurePath(file).suffix.lower()
        if parts[-1] in _METADATA_FILES:
            listing.metadata[parts] = file
        elif suffix in extensions:
            # Some programs of Windows write archives with backslashes.
            listing.images[tuple("\\".join(parts).split("\\"))] = file
        elif not os.path.exists(file):
            raise ValueError(
                f"{os.path.join(*parts)!r} in {name!r} is a link that leads nowhere: repair or remove it."
            )
        elif suffix == ".zip":
            listing.archives[parts] = file
        elif suffix in _TABLES:
            listing.tables.append(file)
        elif parts[-1] not in _SYSTEM_FILES:
            listing.others[suffix or parts[-1]] += 1
    return listing


def walk(
    folder: str | os.PathLike[str],
    empty_folders: list[str] | None = None,
    parts: tuple[str, ...] = (),
    above: tuple[str, ...] = (),
) -> Iterator[File]:
    """All files below a folder in order, but hidden ones; links are followed, except to a folder above themselves.

    Folders without any entry are appended to `empty_folders`.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as scan:
        entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    if not entries and parts and empty_folders is not None:
        empty_folders.append(os.path.join(*parts))
    for entry in entries:
        if not entry.is_dir():
            if entry.is_file() or entry.is_symlink():  # no pipe, whose end never comes
                yield (*parts, entry.name), entry.path
        elif entry.name not in _SKIPPED_FOLDERS:
            yield from walk(entry.path, empty_folders, (*parts, entry.name), (*above, real))


def _tell_unread(listing: _Listing, name: str) -> None:
    unread = [f"{count} {kind}" for kind, count in listing.others.most_common(5)]
    unread += [os.path.join(*parts) for parts in listing.archives]
    if unread:
        logger.warning("In %s, only images are read, and not: %s.", name, ", ".join(unread))
    if listing.empty_folders:
        logger.warning("In %s, these folders are empty: %s.", name, listed(listing.empty_folders))


def _refuse_masks(images: list[tuple[str, ...]], name: str) -> None:
    """Refuse a folder of images beside one of their masks, which would be two classes."""
    kinds = [[part for part in parts[:-1] if part.lower() in _MASKS | _MASKED] for parts in images]
    named = sorted({part for parts in kinds for part in parts})
    masks = [part for part in named if part.lower() in _MASKS]
    if all(kinds) and 0 < len(masks) < len(named):
        raise ValueError(
            f"{name!r} holds {listed(masks)} beside {listed(part for part in named if part not in masks)}, which look "
            f"like masks and their images, not like classes: give --dataset the folder of the images; masks are "
            "columns of a table (docs/finetune.md)."
        )


def _without_wrapper(files: list[File]) -> list[File]:
    """The files by their parts below the first folder that holds more than one other, or that names a split."""
    while len({parts[0] for parts, _ in files}) == 1 and min(len(parts) for parts, _ in files) > 1:
        if split_named(files[0][0][0]):
            break
        files = [(parts[1:], file) for parts, file in files]
    return files


def _group_by_split(files: list[File], name: str) -> dict[str, list[File]]:
    """The files of each split, by their parts below its folder."""
    tops = Counter(parts[0] if len(parts) > 1 else "" for parts, _ in files)
    alike = _splits_alike(tops)
    named = {top: split_named(top) or alike.get(top) for top in tops}
    if all(named.values()):
        groups = defaultdict(list)
        for parts, file in files:
            groups[named[parts[0]]].append((parts[1:], file))
        return {split: groups[split] for split in SPLIT_WORDS if split in groups}
    splits = [top for top in tops if named[top]]
    outside = [top for top in tops if not named[top]]
    if alike or any(len(parts) > 2 and named[parts[0]] for parts, _ in files):
        raise ValueError(
            f"{name!r} holds the split {listed(splits)} beside {sum(tops[top] for top in outside)} images in "
            f"{listed(top or 'the folder itself' for top in outside)}, which belong to no split: move them out, or "
            f"give --dataset the folder that is meant."
        )
    inner = _inner_splits(files)
    if inner:
        raise ValueError(
            f"{name!r} holds the splits {listed(inner[1])} below its folder {inner[0]!r}, where they would be mixed: "
            f"put them above the classes, or give --dataset the folder of one."
        )
    if splits and "" not in tops:
        logger.warning(
            "In %s, the folders %s count as classes, not as splits: beside them stand %s.",
            name,
            listed(splits),
            listed(outside),
        )
    return {"train": files}


def _inner_splits(files: list[File]) -> tuple[str, list[str]] | None:
    """A folder whose folders of images are all named as splits, and their names."""
    inside = defaultdict(set)
    for parts, _ in files:
        for depth in range(1, len(parts)):
            inside[parts[:depth]].add(parts[depth] if depth < len(parts) - 1 else "")
    found = ((parts, names) for parts, names in inside.items() if len(names) > 1 and all(map(split_named, names)))
    return next(((os.path.join(*parts), sorted(names)) for parts, names in found), None)


def _classes(files: list[File], split: str, name: str) -> list[str]:
    """The class of each file of a split; none if the folders name none."""
    depths = {len(parts) for parts, _ in files}
    folders = defaultdict(set)
    for parts, _ in files:
        folders[parts[-2] if len(parts) > 1 else ""].add(parts[:-1])
    ambiguous = [label for label, places in folders.items() if len(places) > 1]
    if depths == {1}:
        return []
    if len(depths) == 1 and not ambiguous:
        return [parts[-2] for parts, _ in files]
    why = f"there are several {ambiguous[0]!r}" if len(depths) == 1 else "their images do not lie equally deep"
    logger.warning(
        "Split %s of %s has no labels, since its folders cannot be classes: %s. Put the images of each class into one "
        "folder, all equally deep.",
        split,
        name,
        why,
    )
    return []


def _rows(files: list[File], classes: Sequence[str], names: list[str]) -> Dataset:
    columns, features = {"image": [file for _, file in files]}, Features({"image": Image(decode=False)})
    if classes and set(classes) <= set(names):
        number = {label: i for i, label in enumerate(names)}
        columns["label"], features["label"] = [number[label] for label in classes], ClassLabel(names=names)
    return Dataset.from_dict(columns, features=features)


def _read_metadata(listing: _Listing, splits: dict[str, list[File]], name: str) -> dict[str, Dataset]:
    """The lines of the metadata files, each in the split of its image; images that none names are told of."""
    try:
        files = [glob.escape(file) for file in listing.metadata.values()]
        rows = datasets.load_dataset("imagefolder", data_files={"train": files}, split="train")
    except Exception as error:
        raise ValueError(
            f"{listed(os.path.join(*parts) for parts in listing.metadata)} in {name!r} cannot be read as metadata of "
            f"its images ({reason(error)}): correct, rename or remove it."
        ) from error
    named = {}
    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
            named[column] = [value and value["path"] for value in rows[column]]
    unnamed = sorted(set(listing.images.values()).difference(*named.values()))
    if unnamed:
        logger.warning(
            "In %s, the metadata names all but %d of %d images, which are not read, the first %s.",
            name,
            len(unnamed),
            len(listing.images),
            unnamed[0],
        )
    if len(splits) == 1:
        return dict.fromkeys(splits, rows)
    split_of = {os.path.dirname(file): split for split, files in splits.items() for _, file in files}
    first = next(iter(named.values()))
    groups = defaultdict(list)
    for index, path in enumerate(first):
        groups[split_of.get(os.path.dirname(path or ""), "train")].append(index)
    return {split: rows.select(indices, keep_in_memory=True) for split, indices in groups.items()}
