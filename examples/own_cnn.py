"""A CNN of your own class as student, offline on digits.

    python examples/own_cnn.py

It returns its maps at several scales as `hidden_states`, and is registered with the Auto classes. Nothing in it knows
of masks: its layers are swapped for sparse ones while it is trained, and swapped back when it is saved.
"""

from itertools import pairwise

import torch
from digits import SIZE, TEACHER, arguments, distil, trained_classifier
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig
from hgkd_hf.sparse import check_exact


class OwnCNNConfig(PreTrainedConfig):
    """Channels of its stages."""

    model_type = "own_cnn"
    widths: list[int] | tuple[int, ...] = (32, 64, 128)


class OwnCNN(PreTrainedModel):
    """A convolution of stride 2 a stage."""

    config_class, main_input_name = OwnCNNConfig, "pixel_values"

    def __init__(self, config: OwnCNNConfig):
        super().__init__(config)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in pairwise((3, *config.widths))
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithNoAttention:
        maps = [pixel_values]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return BaseModelOutputWithNoAttention(last_hidden_state=maps[-1], hidden_states=tuple(maps))


def main() -> None:
    args = arguments(__doc__, "own-cnn-example")
    AutoConfig.register("own_cnn", OwnCNNConfig)
    AutoModel.register(OwnCNNConfig, OwnCNN)
    check_exact(OwnCNN(OwnCNNConfig()), cell_size=8)  # names the module that would look across the mask
    teacher = PatchTeacher(trained_classifier(TEACHER, args, "teacher"))
    student = SparseUNetConfig(encoder_config=OwnCNNConfig(), decoder_width=128)
    distil(HGKDForPreTraining(HGKDConfig.for_teacher(teacher, student, image_size=SIZE)).attach_teacher(teacher), args)


if __name__ == "__main__":
    main()
