"""A stream as long as a run needs it, from any step on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.utils.data
from torch import Tensor

from hgkd_hf.data.dataset import StreamingDistillationDataset


class EndlessStream(torch.utils.data.IterableDataset):
    """Pass after pass of a stream, as if batches had been read before.

    Since no worker ever runs out, a loader takes batches from its workers strictly in turn, and a sample comes for
    every row. So what each worker has given after n batches is known without having kept count.

    Args:
        stream: the samples.
        batch_size: of the loader that reads this.
        batches_before: batches that the workers together have given before; a multiple of their number.
    """

    def __init__(self, stream: StreamingDistillationDataset, batch_size: int, batches_before: int = 0):
        self.stream, self.batch_size, self.batches_before = stream, batch_size, batches_before

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        """Samples of this worker, without end.

        Raises:
            ValueError: `batches_before` does not divide by the number of workers.
            CorruptImageError: 32 rows in a row are bad.
            StreamError: the source is dead.
        """
        worker = torch.utils.data.get_worker_info()
        share, rest = divmod(self.batches_before, 1 if worker is None else worker.num_workers)
        if rest:
            raise ValueError(f"{self.batches_before} batches do not divide among {worker.num_workers} workers.")
        return self.stream.read(0, endless=True, skip=share * self.batch_size)
