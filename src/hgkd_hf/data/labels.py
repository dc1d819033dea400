"""Labels as datasets have them, as numbers of classes; and classes of two sources, compared by their names.

Numbers say nothing by themselves: cat may be 0 in one split and 1 in another. Wherever labels of two sources meet,
`match_classes` or `align_classes` stands between them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from datasets import ClassLabel, Dataset, IterableDataset

from hgkd_hf.data.columns import is_label, no_single_label
from hgkd_hf.data.errors import listed
from hgkd_hf.data.source import ImageSource

logger = logging.getLogger(__name__)

_MOST_UNNAMED = 100_000  # classes that are told from ids without looking at how many occur


def stored_classes(
    dataset: Dataset | IterableDataset, column: str | None
) -> tuple[tuple[str, ...] | None, dict[object, int] | None]:
    """The classes' names, if the dataset has some, and the number of each label that is not a number itself.

    Strings are numbered by their sorted order (those of a stream are not known), False is 0 and True is 1.
    """
    feature = dataset.features[column] if column else None
    if feature is None:
        return None, None
    if isinstance(feature, ClassLabel):
        return tuple(feature.names), None
    if feature.dtype == "bool":
        return ("False", "True"), {False: 0, True: 1}
    if "string" not in feature.dtype or isinstance(dataset, IterableDataset):
        return None, None
    names = sorted(set(_column(dataset, column)) - {None})
    return tuple(names), {name: number for number, name in enumerate(names)}


def labelled(source: ImageSource) -> ImageSource:
    """The source without its rows that have no label, whose number is logged; a stream as it is.

    Raises:
        ValueError: no row has one, a label is not the number of a class, or a stream's labels are strings.
    """
    column, flags = source.label_column, source.flags
    if column is None:
        features = source.dataset.features
        for other in {"label", "labels"} & set(features):
            if not is_label(features[other]):
                raise ValueError(no_single_label(features[other], other, source.name, flags))
        raise ValueError(f"{source.name!r} has no labels: name their column with {flags.label_column}.")
    if source.num_rows is None:
        if source.class_names is None and "string" in source.dataset.features[column].dtype:
            raise ValueError(f"the stream {source.name!r} does not name its classes: drop --streaming.")
        return source
    labels = _labels(source)
    wrong = [label for label in labels if isinstance(label, float)]
    if wrong:
        raise ValueError(
            f"Column {column!r} of {source.name!r} holds {wrong[0]}, but labels are whole numbers or names: choose "
            f"another {flags.label_column}."
        )
    known = [label for label in labels if label is not None]
    if not known:
        raise ValueError(
            f"No row of split {source.split!r} of {source.name!r} has a label in column {column!r}: choose another "
            f"{flags.split} or {flags.label_column}."
        )
    classes = len(source.class_names) if source.class_names else max(known) + 1
    wrong = [label for label in (min(known), max(known)) if not 0 <= label < classes]
    if wrong:
        raise ValueError(
            f"split {source.split!r} of {source.name!r} has the label {wrong[0]}, but its classes are 0 to "
            f"{classes - 1}: choose another {flags.split}, or correct {flags.label_column} {column!r}."
        )
    different = len(set(known))
    if not source.class_names and classes > max(_MOST_UNNAMED, 10 * different):
        raise ValueError(
            f"Column {column!r} of {source.name!r} holds numbers up to {classes - 1}, but only {different} different "
            f"ones, like ids, not classes: choose another {flags.label_column}, or make it a ClassLabel."
        )
    return _without_unlabelled(source, labels, "have no label")


def class_names(source: ImageSource) -> tuple[str, ...]:
    """The classes of a labelled source: as the dataset names them, else 0 to its greatest label.

    All labels are read, but of a stream.

    Raises:
        ValueError: there are no labels, one lies outside the classes, or a stream does not name its classes.
    """
    source = labelled(source)
    if source.class_names is not None:
        return source.class_names
    if source.num_rows is None:
        raise ValueError(f"the stream {source.name!r} does not name its classes: drop --streaming.")
    return tuple(map(str, range(max(_labels(source)) + 1)))


def align_classes(source: ImageSource, names: Sequence[str], owner: str) -> ImageSource:
    """The source with its labels as numbers of `names`, which `owner` (in errors) counts by.

    Labels are matched by name. Where the source does not name its classes, its numbers are taken as they are. Rows
    whose class is none of `names` are left out, and their number is logged.

    Raises:
        ValueError: the classes do not match, see `match_classes`; there are more of them than names; or as `labelled`.
    """
    source = labelled(source)
    where = f"split {source.split!r} of {source.name!r}"
    if source.class_names is None:
        count = None if source.num_rows is None else max(_labels(source)) + 1
        if count is not None and count > len(names):
            raise ValueError(
                f"{where} has labels up to {count - 1}, but {owner} has {len(names)} classes, {listed(names)}."
            )
        return source
    numbers = match_classes(source.class_names, names, where, owner)
    stored = source.classes or {number: number for number in range(len(numbers))}
    classes = {label: numbers[number] for label, number in stored.items() if numbers[number] is not None}
    aligned = replace(source, class_names=tuple(names), classes=classes)
    if aligned.num_rows is None:
        return aligned
    labels = _labels(aligned)
    if all(label is None for label in labels):
        raise ValueError(f"no row of {where} is of a class of {owner}, which are {listed(names)}.")
    return _without_unlabelled(aligned, labels, f"are of classes that {owner} does not have")


def match_classes(given: Sequence[str], wanted: Sequence[str], giver: str, wanter: str) -> list[int | None]:
    """For each class of `given`, its number among `wanted`, by name; None where it is not among them.

    Where one of the two has no names (`LABEL_3`), or mere numbers that the other has not (`3`), classes are matched by
    number, and that is logged.

    Raises:
        ValueError: neither's classes are all among the other's, or names are missing and their numbers differ. The
            sentence has both lists, and calls them `giver`'s and `wanter`'s.
    """
    if list(given) == list(wanted):
        return list(range(len(given)))
    unnamed = _are_unnamed(given) or _are_unnamed(wanted)
    numbered, keys = {key: number for number, key in enumerate(_occurrences(wanted))}, _occurrences(given)
    if not unnamed and (set(keys) <= numbered.keys() or numbered.keys() <= set(keys)):
        return [numbered.get(key) for key in keys]
    if len(given) == len(wanted) and (unnamed or _are_numbers(given) or _are_numbers(wanted)):
        logger.warning("The classes of %s are matched with those of %s by number: not both have names.", giver, wanter)
        return list(range(len(given)))
    if unnamed:
        raise ValueError(
            f"{giver} has {len(given)} classes and {wanter} {len(wanted)}, and not both name them: {listed(given)}; "
            f"{listed(wanted)}."
        )
    raise ValueError(
        f"{giver} has the classes {listed(given)}, but {wanter} has {listed(wanted)}: one's must be among the other's."
    )


def _occurrences(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names made unique by how often they came before: ImageNet has two classes `crane`."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


def _are_unnamed(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers makes up."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def _are_numbers(names: Sequence[str]) -> bool:
    return list(names) in (list(map(str, range(len(names)))), ["False", "True"])


def _labels(source: ImageSource) -> list[int | float | None]:
    """The class of every row; of a number that is not whole, that number."""
    return [source.to_class(label) for label in _column(source.dataset, source.label_column)]


def _column(dataset: Dataset, column: str) -> list:
    return dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()


def _without_unlabelled(source: ImageSource, labels: Sequence[int | None], what: str) -> ImageSource:
    kept = [index for index, label in enumerate(labels) if label is not None]
    if len(kept) == len(labels):
        return source
    logger.warning(
        "%d of %d rows of split %r of %r %s, and are left out.",
        len(labels) - len(kept),
        len(labels),
        source.split,
        source.name,
        what,
    )
    return replace(source, dataset=source.dataset.select(kept, keep_in_memory=True), num_rows=len(kept))
