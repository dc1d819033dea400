"""What a teacher's cache holds, and where in its folder.

    cache.json                              which teacher saw which views of which images: `CacheInfo`
    view-000/00000-of-00013/data.arrow      view 0 of images 0, 1, ...: an Arrow stream
    view-000/00000-of-00013/manifest.json   size and checksum of the file beside it

A shard is a folder that is whole or not there (see `checkpoints.whole_folders`). Which images it holds depends on
`images_per_shard` alone, so that any number of processes, killed however often, write the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ...checkpoints.whole_folders import write_whole

if TYPE_CHECKING:
    from datasets import Features

INFO_FILE, DATA_FILE = "cache.json", "data.arrow"
DATA_FILES = f"view-*/*/{DATA_FILE}"
VERSION = 2  # 1: views were resized by Pillow

Storage = Literal["float32", "float16", "int8"]
_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_SCALE_BYTES, _OTHER_BYTES = 2, 37  # of a channel's scale; of an image's other columns


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` (not included) of one view; `name` is its folder's path in the cache."""

    name: str
    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class CacheInfo:
    """Which teacher saw which views of which images, and how what it saw is stored.

    Attributes:
        teacher: Hub id of the teacher, or the last part of its path.
        teacher_revision: its commit, where the Hub told it.
        teacher_weights: digest of its weights.
        teacher_dtype: what it computed in.
        teacher_layers: as `PatchTeacher.layers`.
        teacher_image_size: (height, width) in pixels, to which the views were resized for it.
        hidden_sizes: channels of each layer's map.
        grid: (rows, columns) of the stored maps.
        dataset: Hub id of the images, or the last part of their path.
        dataset_revision, dataset_config, split, max_samples: how they were asked for.
        rows: number of images.
        fingerprint: of their content.
        transform: fields of the `ImageTransform` that cut the views, without its normalisation.
        seed: of the views. View k is what `sample_generator(seed, k, row, "view")` draws: epoch k of live training.
        views: number of views of each image.
        storage: type of the stored values.
        images_per_shard: of one view.
        version: of the format.
    """

    teacher: str
    teacher_revision: str | None
    teacher_weights: str
    teacher_dtype: str
    teacher_layers: tuple[int, ...]
    teacher_image_size: tuple[int, int]
    hidden_sizes: tuple[int, ...]
    grid: tuple[int, int]
    dataset: str
    dataset_revision: str | None
    dataset_config: str | None
    split: str
    max_samples: int | None
    rows: int
    fingerprint: str
    transform: Mapping[str, Any]
    seed: int
    views: int
    storage: Storage
    images_per_shard: int
    version: int = VERSION

    @classmethod
    def load(cls, folder: str | Path) -> CacheInfo:
        """Read `cache.json`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not readable, or of another format.
        """
        path = Path(folder, INFO_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {INFO_FILE}, so that it is not a teacher's cache.")
        try:
            values = {
                name: _with_tuples(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()
            }
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not readable as JSON.") from error
        if values.get("version") != VERSION or set(values) != {field.name for field in fields(cls)}:
            raise ValueError(
                f"{path} is of format {values.get('version')}, but this version of hgkd_hf reads format {VERSION}: "
                "write the cache again with `hgkd teach`."
            )
        hints = get_type_hints(cls)
        wrong = [name for name, value in values.items() if not _fits(value, hints[name])]
        if wrong:  # it may come from the Hub, and what it says becomes flags
            raise ValueError(f"{path} gives no valid {wrong[0]}: write the cache again with `hgkd teach`.")
        return cls(**values)

    def save(self, folder: str | Path) -> None:
        """Write `cache.json`."""
        write_whole(Path(folder, INFO_FILE), json.dumps(asdict(self), indent=2) + "\n")

    def check_continues(self, now: CacheInfo, folder: str | Path) -> None:
        """Compare with what a command is about to write to `folder`, which may have more views.

        Raises:
            ValueError: it has fewer, or anything else differs; the message names each setting with both values.
        """
        pairs = [(item.name, getattr(self, item.name), getattr(now, item.name)) for item in fields(self)]
        changed = [pair for pair in pairs if (pair[2] < pair[1] if pair[0] == "views" else pair[1] != pair[2])]
        if changed:
            differences = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in changed)
            raise ValueError(
                f"the cache in {folder} was begun with other settings ({differences}): set them back, or choose "
                "another --output_dir."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a distillation that the cache decides, by their names there."""
        views = ("image_size", "crop_scale", "flip_probability", "color_jitter")
        return {name: self.transform[name] for name in views} | {
            "teacher": self.teacher,
            "teacher_revision": self.teacher_revision,
            "teacher_layers": self.teacher_layers,
            "teacher_image_size": self.teacher_image_size[0],
            "teacher_dtype": self.teacher_dtype,
            "teacher_input": "full",
            "dataset_config": self.dataset_config,
            "split": self.split,
            "max_samples": self.max_samples,
        }

    def check_settings(self, given: Mapping[str, Any]) -> None:
        """Compare with the settings of a distillation; None is not compared.

        Raises:
            ValueError: one contradicts the cache; the message names it with both values.
        """
        for name, cached in self.settings.items():
            value = _with_tuples(given.get(name))
            if value is not None and cached not in (value, public_name(value) if name == "teacher" else value):
                raise ValueError(
                    f"{name} is {value!r}, but the teacher's cache was written with {cached!r}: leave --{name} out, "
                    "or write another cache with `hgkd teach`."
                )

    def check_images(self, dataset: str, rows: int, fingerprint: str) -> None:
        """Compare with the images of a distillation.

        Raises:
            ValueError: there are others.
        """
        if (rows, fingerprint) != (self.rows, self.fingerprint):
            raise ValueError(
                f"the {rows:,} images of {dataset!r} are not the {self.rows:,} of {self.dataset!r} that the teacher's "
                "cache was written from: correct --dataset, --split or --max_samples, or write another cache with "
                "`hgkd teach`."
            )

    @property
    def shards(self) -> list[Shard]:
        """All shards, view by view."""
        starts = range(0, self.rows, self.images_per_shard)
        return [
            Shard(
                f"view-{view:03d}/{part:05d}-of-{len(starts):05d}",
                view,
                start,
                min(start + self.images_per_shard, self.rows),
            )
            for view in range(self.views)
            for part, start in enumerate(starts)
        ]

    @property
    def channels(self) -> int:
        """Of the maps of all layers, which are stored one after the other as one map."""
        return sum(self.hidden_sizes)

    @property
    def bytes_per_image(self) -> int:
        """What one view of one image takes on the disk."""
        channel = self.grid[0] * self.grid[1] * _BYTES[self.storage]
        return self.channels * (channel + (_SCALE_BYTES if self.storage == "int8" else 0)) + _OTHER_BYTES

    @property
    def bytes(self) -> int:
        """What all views of all images take on the disk."""
        return self.views * self.rows * self.bytes_per_image

    @property
    def columns(self) -> Features:
        """The columns of a shard: see `TeacherCache`."""
        from datasets import Features, List, Value  # not above: every distiller knows caches, few runs have one

        columns = {
            "row": Value("int64"),
            "view": Value("int32"),
            "seed": Value("int64"),
            "box": List(Value("int32"), length=4),
            "flip": Value("bool"),
            "features": List(Value(self.storage), length=self.channels * self.grid[0] * self.grid[1]),
        }
        if self.storage == "int8":
            columns["scale"] = List(Value("float16"), length=self.channels)
        return Features(columns)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type of its field."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind is UnionType:
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and all(type(entry) is int for entry in value)
    if kind is Mapping:
        return isinstance(value, dict) and all(
            isinstance(entry, str | int | float)
            or (isinstance(entry, tuple) and all(isinstance(number, int | float) for number in entry))
            for entry in value.values()
        )
    return type(value) is hint


def _with_tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(entry) for name, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value


def public_name(name_or_path: str) -> str:
    """A Hub id as it is; of a local path `./` and its last part, since a cache may be published."""
    path = Path(name_or_path)
    return f"./{path.absolute().name}" if path.exists() else name_or_path
