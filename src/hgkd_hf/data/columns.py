"""Which column holds the images, and which the labels."""

from __future__ import annotations

from datasets import ClassLabel, Features, Image, List, Value

from hgkd_hf.data.errors import Flags, listed
from hgkd_hf.data.folders import split_named


def find_image_column(features: Features, wanted: str | None, name: str, target_column: str | None = None) -> str:
    """The column of images: `wanted`, else the only one that holds some beside the masks in `target_column`.

    Raises:
        ValueError: there is none, or several.
    """
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{name!r} has no column {wanted!r}: choose --image_column from {listed(features)}.")
        if not _may_hold_images(features[wanted]):
            raise ValueError(
                f"Column {wanted!r} of {name!r} holds {features[wanted]}, not images: correct --image_column."
            )
        return wanted
    found = [column for column, feature in features.items() if isinstance(feature, Image) and column != target_column]
    if not found:  # parquet files written without `datasets` hold plain bytes
        found = [column for column in ("image", "img") if column in features and _may_hold_images(features[column])]
    if not found:
        raise ValueError(f"No column of {name!r} is of images: name one of {listed(features)} with --image_column.")
    if len(found) > 1:
        raise ValueError(f"Several columns of {name!r} hold images: choose --image_column from {listed(found)}.")
    return found[0]


def _may_hold_images(feature: object) -> bool:
    """Whether `Image(decode=False)` can stand for the column: images, bytes, paths or dicts of bytes and path."""
    if isinstance(feature, Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def find_label_column(features: Features, wanted: str | None, name: str, flags: Flags) -> str | None:
    """The column of labels: `wanted`, else the only `ClassLabel`, else `label` or `labels`, else None.

    Classes that are all named as splits are none: `datasets` makes them of a repository's folders train and test.

    Raises:
        ValueError: the one wanted is not there, or cannot hold one label a row.
    """
    if wanted is not None:
        if wanted not in features:
            choices = [column for column, feature in features.items() if is_label(feature)]
            raise ValueError(f"{name!r} has no column {wanted!r}: choose {flags.label_column} from {listed(choices)}.")
        if not is_label(features[wanted]):
            raise ValueError(no_single_label(features[wanted], wanted, name, flags))
        return wanted
    classes = {column: feature.names for column, feature in features.items() if isinstance(feature, ClassLabel)}
    found = [column for column, names in classes.items() if not all(map(split_named, names))]
    if len(found) == 1:
        return found[0]
    by_name = (column for column in ("label", "labels") if column in features and is_label(features[column]))
    return next((column for column in by_name if column in found or column not in classes), None)


def is_label(feature: object) -> bool:
    """Whether a column can hold one label a row: classes, numbers, truth values or strings."""
    if isinstance(feature, Value):
        return feature.dtype.startswith(("int", "uint", "float", "bool", "string", "large_string"))
    return isinstance(feature, ClassLabel)


def no_single_label(feature: object, column: str, name: str, flags: Flags) -> str:
    """What is said of a column whose rows do not have one label each."""
    found = "several labels a row" if isinstance(feature, List | list) else str(feature)
    return (
        f"Column {column!r} of {name!r} holds {found}, but one label a row is needed: choose another "
        f"{flags.label_column}."
    )
