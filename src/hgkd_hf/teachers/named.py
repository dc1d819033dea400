"""Teachers by name: their Hub ids at pinned commits, and the settings that fit them.

Nothing here was measured by us, unless `measured` says so: layers are the literature's, licences those that the pages
of the checkpoints name.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedTeacher:
    """A checkpoint of the Hub.

    Attributes:
        repo: its Hub id.
        commit: which state of it; None: see `note`.
        patch_size: pixels on a side of a token, of a CNN on that of a position; image sizes are multiples of it.
        parameters: of its vision tower, in millions.
        license: as its page names it.
        layers: what to read, as `teacher_layers`: -1 is the final output, i the output of block i, a CNN's i-th map;
            None: the method's default.
        dtype: as `teacher_dtype`.
        measured: what we measured of its students.
        note: what else to know.
    """

    repo: str
    commit: str | None
    patch_size: int
    parameters: float
    license: str
    layers: tuple[int, ...] | None = None
    dtype: str = "float32"
    measured: str = "not measured"
    note: str = ""

    @property
    def settings(self) -> dict[str, object]:
        """The defaults of a command's settings that go with it, beside the commit."""
        layers = {} if self.layers is None else {"teacher_layers": list(self.layers)}
        return layers | {"teacher_dtype": self.dtype}


DINOV3 = {"license": "dinov3-license", "note": "gated: accept its terms on its page, then `hf auth login`"}

TEACHERS: dict[str, NamedTeacher] = {
    "dinov2-small": NamedTeacher(
        "facebook/dinov2-small", "ed25f3a31f01632728cabb09d1542f84ab7b0056", 14, 22.1, "apache-2.0"
    ),
    "dinov2-base": NamedTeacher(
        "facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415", 14, 86.6, "apache-2.0"
    ),
    "dinov2-large": NamedTeacher(
        "facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c", 14, 304.4, "apache-2.0"
    ),
    "dinov2-registers-small": NamedTeacher(
        "facebook/dinov2-with-registers-small", "0d9846e56b43a21fa46d7f3f5070f0506a5795a9", 14, 22.1, "apache-2.0"
    ),
    "dinov2-registers-base": NamedTeacher(
        "facebook/dinov2-with-registers-base", "a1d738ccfa7ae170945f210395d99dde8adb1805", 14, 86.6, "apache-2.0"
    ),
    "dinov3-vits16": NamedTeacher(
        "facebook/dinov3-vits16-pretrain-lvd1689m", "114c1379950215c8b35dfcd4e90a5c251dde0d32", 16, 21.6, **DINOV3
    ),
    "dinov3-vitb16": NamedTeacher(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "5931719e67bbdb9737e363e781fb0c67687896bc", 16, 85.7, **DINOV3
    ),
    "dinov3-vitl16": NamedTeacher(
        "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "ea8dc2863c51be0a264bab82070e3e8836b02d51",
        16,
        303.1,
        **DINOV3,
    ),
    # CNNs: layer 3 is the stage of stride 16, whose maps have as many positions as a patch-16 ViT has tokens.
    **{
        f"dinov3-convnext-{size}": NamedTeacher(
            f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
            None,
            16,
            parameters,
            DINOV3["license"],
            layers=(3,),
            note=f"not pinned: its commit is not known to us; {DINOV3['note']}",
        )
        for size, parameters in (("tiny", 27.8), ("small", 49.5), ("base", 87.6), ("large", 196.2))
    },
    "mae-base": NamedTeacher(
        "facebook/vit-mae-base", "25b184bea5538bf5c4c852c79d221195fdd2778d", 16, 85.8, "apache-2.0"
    ),
    # Of CLIP, the block before the last, as in LLaVA (arXiv:2304.08485): only the class token of the last is trained.
    "clip-base": NamedTeacher(
        *("openai/clip-vit-base-patch16", None, 16, 85.8, "not named"),
        layers=(11,),
        note="not pinned: its main branch has, to our knowledge, no safetensors, which transformers then converts",
    ),
    "clip-large": NamedTeacher(
        *("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", 14, 303.2, "not named"),
        layers=(23,),
    ),
    "siglip-base": NamedTeacher(
        "google/siglip-base-patch16-224", "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", 16, 92.9, "apache-2.0"
    ),
    "siglip2-base": NamedTeacher(
        "google/siglip2-base-patch16-224", "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2", 16, 92.9, "apache-2.0"
    ),
}


def teacher_source(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """The Hub id or folder that `name` stands for, and its revision: the pinned commit if none is asked for.

    Raises:
        ValueError: it is no folder, has no owner as Hub ids do, and is none of `TEACHERS`; the nearest are named.
    """
    named = TEACHERS.get(name)
    if named is not None and not os.path.isdir(name):
        return named.repo, revision or named.commit
    if "/" not in name and os.sep not in name and not os.path.isdir(name):
        near = difflib.get_close_matches(name, TEACHERS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"there is no teacher {name!r}: {hint}`hgkd teachers` lists those that have a name; a Hub id (owner/name) "
            "or a folder works too (--teacher)."
        )
    return name, revision
