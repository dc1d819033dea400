"""List the teachers that have a name: Hub id, commit, layers, sizes, licence, and what was measured.

    hgkd teachers
    hgkd distill --teacher dinov2-small --student resnet-18 --dataset path/to/images

Any other Hub id or folder of a vision transformer, or for H-GKD of a CNN, can be a teacher too.
"""

from __future__ import annotations

from .errors import run_script
from .output import show, show_table
from .parser import plain_parser


def main(arguments: list[str] | None = None) -> None:
    plain_parser("teachers", __doc__).parse_args(arguments)
    from ..teachers.named import TEACHERS  # here, after --help is answered

    rows = [
        {
            "name": name,
            "Hub id": teacher.repo,
            "commit": (teacher.commit or "not pinned")[:10],
            "M": f"{teacher.parameters:g}",
            "patch": f"{teacher.patch_size}",
            "layers": "" if teacher.layers is None else ", ".join(map(str, teacher.layers)),
            "licence": teacher.license,
            "students": teacher.measured,
        }
        for name, teacher in TEACHERS.items()
    ]
    show_table(rows)
    for note in dict.fromkeys(teacher.note for teacher in TEACHERS.values() if teacher.note):
        names = ", ".join(name for name, teacher in TEACHERS.items() if teacher.note == note)
        show(f"{names}: {note}.")
    show("M: millions of parameters. Layers: block i, of a CNN its i-th map; none: the default.")
    show("Licences: as the pages say.")


if __name__ == "__main__":
    run_script(main)
