"""List the students that have a name: family, parameters, total stride, and where weights come from.

    hgkd students
    hgkd distill --student convnextv2-atto --teacher dinov2-small --dataset path/to/images

Any other Hub id or folder, a config as JSON, or the import path of a function that builds a network
(package.module:function) can be a student too.
"""

from __future__ import annotations

from ..students.presets import PRESETS, WEIGHTS
from .errors import run_script
from .output import show, show_table
from .parser import plain_parser


def main(arguments: list[str] | None = None) -> None:
    plain_parser("students", __doc__).parse_args(arguments)
    import torch
    from transformers import AutoModel

    from ..students.features import feature_scales
    from ..students.presets import student_encoder_config

    rows = []
    for name, preset in PRESETS.items():
        config = student_encoder_config(name)
        with torch.device("meta"):
            parameters = AutoModel.from_config(config).num_parameters() / 1e6
        repo, commit = WEIGHTS.get(name, ("none", None))
        rows.append(
            {
                "name": name,
                "family": preset["model_type"],
                "M": f"{parameters:.1f}",
                "stride": f"{feature_scales(config)[-1].stride}",
                "weights": repo + (f" at {commit[:10]}" if commit else ""),
            }
        )
    show_table(rows)
    show("M: millions of parameters of the encoder. Weights are random without `hgkd distill --student_pretrained`.")


if __name__ == "__main__":
    run_script(main)
