"""A checkpoint as it leaves the machine: what resuming needs, and nothing that tells of places."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoints.folders import ARGUMENTS_FILE
from ..checkpoints.whole_folders import MANIFEST, PARTIAL, complete_folder
from .privacy import public_names
from .recipe import public_settings
from .untrusted import checked_state


def public_checkpoint(checkpoint: Path, folder: Path) -> Path:
    """Put a checkpoint into a new folder for publication: tensors are linked, JSON is rewritten, a manifest is made.

    Args:
        checkpoint: a whole one; it may be deleted afterwards.
        folder: on the same disk, or the files are copied.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
        kept = partial / path.relative_to(checkpoint)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.name == TRAINER_STATE_NAME:
            checked_state(path).save_to_json(str(kept))
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            content = public_settings(content) if path.name == ARGUMENTS_FILE else public_names(content)
            kept.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                shutil.copyfile(path, kept)
    return complete_folder(partial)
