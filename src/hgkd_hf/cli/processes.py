"""Commands that several processes run together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


def join_processes() -> Accelerator:
    """This process among those that share the work.

    Raises:
        RuntimeError: the launcher started several, but each believes that it is alone.
    """
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # They wait for each other at the end, and the last may be a whole shard behind.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=2))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise RuntimeError(f"{started} processes were started, but each believes that it is alone.")
    return accelerator


def on_main_process(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work` gives in the main process, in all of them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([work() if accelerator.is_main_process else None])[0]
