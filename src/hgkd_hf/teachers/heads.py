"""The self-supervised head that a teacher was trained with, read from its authors' checkpoint.

Known are the files of DINO (arXiv:2104.14294), iBOT (arXiv:2111.07832), MSN (arXiv:2204.07141) and SwAV
(arXiv:2006.09882), as pickles of tensors or as safetensors. All four heads are an MLP, a normalisation to length 1,
and a matrix of prototypes; files differ in the names of these.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# The branch of a checkpoint that teaches; the student's own is beside it.
TEACHING = ("teacher.", "target_encoder.")
MLP = re.compile(r"(?:head\.mlp|projection_head|fc)\.\D*(\d+)\.(weight|bias|running_mean|running_var)$")
LAST_LAYER = re.compile(r"(?:head\.last_layer|prototypes)(?:\.(weight|weight_g|weight_v))?$")


class TeacherHead(nn.Module):
    """A frozen head, from image or patch features to scores over its prototypes; stays in eval mode.

    Args:
        mlp: from features to embeddings, which are then normalised.
        prototypes: (K, D) float32.
        name_or_path: the file.

    Attributes:
        in_features: width of the features it takes.
    """

    def __init__(self, mlp: nn.Module, prototypes: Tensor, name_or_path: str | None = None):
        super().__init__()
        self.mlp, self.name_or_path = mlp, name_or_path
        self.register_buffer("prototypes", prototypes)
        self.in_features = next(module.in_features for module in mlp.modules() if isinstance(module, nn.Linear))
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: str | os.PathLike, ssl_method: str) -> TeacherHead:
        """Read the head of a checkpoint of `ssl_method` (dino, ibot, msn or swav); of a pickle, tensors only.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds more than tensors, or no such head.
        """
        tensors = _read_tensors(Path(path))
        teaching = [prefix for prefix in TEACHING if any(key.startswith(prefix) for key in tensors)]
        if teaching:
            tensors = {key: value for key, value in tensors.items() if key.startswith((*teaching, "prototypes"))}
        layers: dict[tuple[int, bool], dict[str, Tensor]] = {}
        last: dict[str, Tensor] = {}
        for key, value in tensors.items():
            if match := MLP.search(key):
                # A linear layer and its norm share a number in MSN's files (fc1, bn1), and have their own in SwAV's.
                is_norm = f"{key.rpartition('.')[0]}.running_mean" in tensors
                layers.setdefault((int(match[1]), is_norm), {})[match[2]] = value.float()
            elif match := LAST_LAYER.search(key):
                last[match[1] or "weight"] = value.float()
        if not layers or not last:
            raise ValueError(
                f"{str(path)!r} holds no head of {ssl_method} (teacher_head): give the whole checkpoint of the "
                f"pre-training rather than the backbone alone."
            )
        prototypes = last["weight"] if "weight" in last else F.normalize(last["weight_v"], dim=1) * last["weight_g"]
        if ssl_method in ("msn", "swav"):  # their scores are cosines
            prototypes = F.normalize(prototypes, dim=1)
        mlp = _build_mlp([layers[key] for key in sorted(layers)], nn.ReLU if ssl_method == "swav" else nn.GELU)
        return cls(mlp, prototypes, os.fspath(path))

    def train(self, mode: bool = True) -> TeacherHead:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """(..., in_features) to scores (..., K)."""
        return F.normalize(self.mlp(features), dim=-1) @ self.prototypes.T


def _build_mlp(layers: list[dict[str, Tensor]], activation: type[nn.Module]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for index, tensors in enumerate(layers):
        if "running_mean" in tensors:
            modules.append(nn.BatchNorm1d(len(tensors["weight"])))
        else:
            out_features, in_features = tensors["weight"].shape
            modules.append(nn.Linear(in_features, out_features, bias="bias" in tensors))
        modules[-1].load_state_dict(tensors, strict=False)  # without the count of batches, which eval does not need
        following = layers[index + 1 : index + 2]
        if following and "running_mean" not in following[0]:
            modules.append(activation())
    return nn.Sequential(*modules)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by their dotted names, without DDP's `module.`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} (teacher_head).")
    if path.suffix == ".safetensors":
        content = load_file(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{str(path)!r} holds more than tensors and plain values, and is not opened (teacher_head): save its "
                f"state dict alone, best as safetensors."
            ) from error
    tensors: dict[str, Tensor] = {}

    def collect(prefix: str, value: object) -> None:
        if isinstance(value, Tensor):
            tensors[prefix] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                name = str(key).replace("module.", "")
                collect(f"{prefix}.{name}" if prefix else name, part)

    collect("", content)
    return tensors
