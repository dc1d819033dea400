"""Samples of a stream, and a stream as long as a run needs it, from any step on and among any number of readers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from hgkd_hf.data.augment import ImageTransform, MultiCropTransform, sample_generator
from hgkd_hf.data.dataset import MAX_TRIES, Samples, all_bad
from hgkd_hf.data.decode import CorruptImageError
from hgkd_hf.data.positions import Piece, Position, Window, share, share_out
from hgkd_hf.data.reading import READ_AHEAD, read_patiently
from hgkd_hf.data.source import ImageSource

logger = logging.getLogger(__name__)

# Of fewer rows of a stream, the share that is bad says nothing.
_FIRST_ROWS = 100
_COUNTER_SLOTS = 1024
# The number of rows is not known: bad ones share a place where their indices are a multiple of this apart.
_ROW_SLOTS = 2**20

Sample = dict[str, Tensor | int]


@dataclass(frozen=True)
class _Row:
    values: dict[str, Any]
    index: int
    epoch: int
    pieces: tuple[Piece, ...]  # what is left of the running pass, from this row on


class StreamingDistillationDataset(Samples, torch.utils.data.IterableDataset):
    """The samples of `DistillationDataset`, from a stream.

    `sample_index` is row * number of shards + shard, whoever reads the row, so that a sample is a function of (seed,
    epoch, shard, row) alone; of a stream of one shard (file), samples equal those of the map-style dataset. The order
    depends on the number of readers, each of which reads shards of its own: see `positions`.

    Bad images are replaced, counted and named as there (but a last row, whose next there is not, is left out), so that
    a reader gives as many samples as it reads rows. A source that stalls or fails is read again: see `read_patiently`.

    Args:
        source: streaming rows.
        transform: image -> `pixel_values`.
        seed, settings: as in `DistillationDataset`; `mixing` can only smooth labels.
        shuffle_buffer: rows that are shuffled together, after a shuffle of the shards, by (seed, epoch); up to twice
            so many are held, undecoded. 0 keeps the order of the files, often that of the classes.

    Raises:
        ValueError: the source does not stream, labels are asked of a source without, or images are to be mixed.
    """

    _streams = True

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform | MultiCropTransform,
        *,
        seed: int,
        shuffle_buffer: int = 0,
        **settings,
    ) -> None:
        super().__init__(source, transform, seed=seed, **settings)
        if self.mixing is not None and self.mixing.needs_partner:
            raise ValueError("mixup and cutmix read a second row of any index: set both to 0, or drop --streaming.")
        self.shuffle_buffer = shuffle_buffer
        # One slot a worker, since an addition by two of them to one slot could lose a count.
        self._rows_read, self._rows_skipped = torch.zeros(2, _COUNTER_SLOTS, dtype=torch.int64).share_memory_()

    @property
    def skipped_share(self) -> float:
        """Share of bad rows among those that workers of this process have read so far."""
        return int(self._rows_skipped.sum()) / max(int(self._rows_read.sum()), _FIRST_ROWS)

    def __iter__(self) -> Iterator[Sample]:
        """One pass over this worker's share, in the epoch that was set.

        Raises:
            CorruptImageError: 32 rows in a row are bad.
            StreamError: the source is dead.
        """
        worker, epoch = torch.utils.data.get_worker_info(), int(self._epoch)
        reader, readers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for sample, _ in self.read(Position(epoch), reader, readers, end=epoch + 1):
            yield sample

    def read(
        self, position: Position, reader: int, readers: int, end: int | None = None
    ) -> Iterator[tuple[Sample, Position]]:
        """The samples of one of `readers` readers from a position on, each with the position after it.

        Args:
            position: where to begin.
            reader: which one, from 0.
            readers: their number, in all processes.
            end: the pass before which to stop; None: never.
        """
        waiting: list[tuple[int, int, Position]] = []  # rows for which a good image is sought
        for row, after in self._shuffled(position, reader, readers, end):
            self._rows_read[_counter_slot()] += 1
            waiting.append((row.index, row.epoch, after))
            try:
                image = self._decode(row.values, row.index)
            except CorruptImageError as error:
                self._skip(row.index, row.values, error)
                if len(waiting) == MAX_TRIES:
                    raise all_bad(self.source, error) from error
            else:
                for key, epoch, after in waiting:
                    yield self._sample(image, row.values, row.index, key, epoch), after
                waiting.clear()

    def _shuffled(
        self, position: Position, reader: int, readers: int, end: int | None
    ) -> Iterator[tuple[_Row, Position]]:
        """The rows in the order in which they are shown.

        With a buffer they are shuffled within windows of so many, rather than drawn one by one from a buffer that is
        filled up: a window is made again from the place where it began.
        """
        size, place = self.shuffle_buffer, replace(position, windows=())
        for number, window in enumerate(position.windows):
            rows = list(itertools.islice(self._rows(Position(0, window.pieces), 0, 1, end=0), window.rows))
            later = position.windows[number + 1 :]
            yield from self._of_window([row for row, _ in rows], window, replace(place, windows=later))
        if not size:
            yield from self._rows(place, reader, readers, end)
            return
        rows = self._rows(place, reader, readers, end, ahead=max(size, READ_AHEAD))
        for _, of_a_pass in itertools.groupby(rows, lambda entry: entry[0].epoch):
            while held := list(itertools.islice(of_a_pass, size)):
                window = Window(held[0][0].pieces, len(held), 0)
                yield from self._of_window([row for row, _ in held], window, held[-1][1])

    def _of_window(self, rows: list[_Row], window: Window, after: Position) -> Iterator[tuple[_Row, Position]]:
        """What is not given yet of a window's rows, shuffled; the position after the last is `after`."""
        generator = sample_generator(self.seed, rows[0].epoch, rows[0].index, "order")
        order = torch.randperm(len(rows), generator=generator).tolist()
        for given in range(window.given, len(rows)):
            left = () if given + 1 == len(rows) else (replace(window, given=given + 1),)
            yield rows[order[given]], replace(after, windows=left + after.windows)

    def _rows(
        self, position: Position, reader: int, readers: int, end: int | None, ahead: int = READ_AHEAD
    ) -> Iterator[tuple[_Row, Position]]:
        """The rows in the order in which they are read."""

        def read(place: Position) -> Iterator[tuple[_Row, Position]]:
            epoch, pieces = place.epoch, place.pieces
            while pieces or end is None or epoch < end:
                if not pieces:
                    pieces, epoch = (share(epoch, reader, readers, self.num_shards),), epoch + 1
                piece, *others = pieces
                if piece.start >= piece.stop:
                    pieces = tuple(others)
                    continue
                shard, part = self._shard(piece)
                rows = self.rows.shard(self.num_shards, shard)
                # `iter`, since `__iter__` in a loader's worker shares the shards out once more.
                batches = (rows.skip(piece.row) if piece.row else rows).iter(batch_size=1)
                for number, batch in enumerate(batches, piece.row):
                    if number % piece.parts != part:
                        continue
                    values = {column: value[0] for column, value in batch.items()}
                    here = (replace(piece, row=number), *others)
                    row = _Row(values, number * self.num_shards + shard, piece.epoch, here)
                    yield row, Position(epoch, (replace(piece, row=number + 1), *others))
                pieces = (piece.after_first(), *others)

        return read_patiently(read, position, self.source.name, ahead)

    @property
    def num_shards(self) -> int:
        """Number of shards (files) that can be read on their own."""
        return self.rows.num_shards

    def _shard(self, piece: Piece) -> tuple[int, int]:
        """(shard, part of it) that is a piece's first, in the order of its pass: the files' without a buffer."""
        part, place = divmod(piece.start, self.num_shards)
        if self.shuffle_buffer:
            generator = sample_generator(self.seed, piece.epoch, 0, "shards")
            place = int(torch.randperm(self.num_shards, generator=generator)[place])
        return place, part

    def _decode(self, row: dict, index: int) -> Image.Image:
        if self.return_labels:  # which nobody has looked through before
            label, classes = self.source.label(row), self.source.class_names
            if label is None:
                raise CorruptImageError(f"row {index} has no label.")
            if not isinstance(label, int) or label < 0 or (classes is not None and label >= len(classes)):
                raise ValueError(
                    f"row {index} of {self.source.name!r} has the label {label}, which is not the number of a class: "
                    f"correct {self.source.flags.label_column} {self.source.label_column!r}."
                )
        return super()._decode(row, index)

    def _skip(self, index: int, row: dict, error: CorruptImageError) -> None:
        self._rows_skipped[_counter_slot()] += 1
        super()._skip(index, row, error)

    def _num_slots(self) -> int:
        return _ROW_SLOTS


def _counter_slot() -> int:
    """This worker's place in shared counters."""
    worker = torch.utils.data.get_worker_info()
    return 0 if worker is None else 1 + worker.id % (_COUNTER_SLOTS - 1)


class EndlessStream(torch.utils.data.IterableDataset):
    """Pass after pass of a stream for the loader of one process, which knows where each of its workers is.

    Each worker of each process is a reader. No worker ever runs out, so a loader takes batches from its workers
    strictly in turn, and all processes have as many, however many rows their shards have.

    Every batch of a loader whose `collate_fn` is `self.collate` says where its worker is after it; `note` must see
    every batch that is used.

    Args:
        stream: the samples.
        collate: samples to a batch.
        rank: of this process.
        world_size: number of processes.
        workers: of each process' loader; 0: it reads itself.
        states: what `state` gave in each process of the run that is resumed. With other numbers of processes or
            workers, what was left to read is shared out: no row is lost or given twice, in another order.

    Raises:
        ValueError: a state is none.
    """

    _KEY = "stream_position"

    def __init__(
        self,
        stream: StreamingDistillationDataset,
        collate: Callable[[list[Sample]], dict[str, Any]],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        states: Sequence[dict[str, Any]] = (),
    ):
        self.stream, self._collate, self.rank, self.world_size = stream, collate, rank, world_size
        own, turn = [Position()] * max(1, workers), 0
        try:
            readers = [[Position.from_dict(entry) for entry in state["positions"]] for state in states]
            turns = [int(state["turn"]) for state in states]
            for position in itertools.chain.from_iterable(readers):
                position.check(stream.num_shards)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the checkpoint does not say where the stream was ({error!r}).") from error
        if [len(entries) for entries in readers] == [len(own)] * world_size:
            own, turn = readers[rank], turns[rank] % len(own)
        elif readers:
            earlier = [position for of_a_turn in itertools.zip_longest(*readers) for position in of_a_turn if position]
            everyone = self.world_size * len(own)
            own = [share_out(earlier, self._reader(n), everyone, stream.num_shards) for n in range(len(own))]
            message = "The stream was read by %d readers, and now by %d: what is left is shared out anew."
            logger.warning(message, len(earlier), everyone)
        self.positions, self.turn = own, turn

    def _reader(self, number: int) -> int:
        """Of this process's reader, the number among all: shards go to processes in turn."""
        return number * self.world_size + self.rank

    def __iter__(self) -> Iterator[tuple[Sample, tuple[int, Position]]]:
        """Samples of this worker, without end, each with (reader of this process, its position after it).

        Raises:
            CorruptImageError: 32 rows in a row are bad.
            StreamError: the source is dead.
        """
        worker = torch.utils.data.get_worker_info()
        number = ((0 if worker is None else worker.id) + self.turn) % len(self.positions)
        readers = self.world_size * len(self.positions)
        for sample, position in self.stream.read(self.positions[number], self._reader(number), readers):
            yield sample, (number, position)

    def collate(self, samples: list[tuple[Sample, tuple[int, Position]]]) -> dict[str, Any]:
        """A batch, and where its reader is after it."""
        return self._collate([sample for sample, _ in samples]) | {self._KEY: samples[-1][1]}

    def note(self, batch: dict[str, Any]) -> None:
        """Take from a batch that is used what `collate` added."""
        number, position = batch.pop(self._KEY)
        self.positions[number] = position
        self.turn = (number + 1) % len(self.positions)

    def state(self) -> dict[str, Any]:
        """Where this process's readers are after the batches that were used, as JSON values."""
        return {"turn": self.turn, "positions": [position.to_dict() for position in self.positions]}
