"""A vision transformer of your own class as teacher, offline on digits.

    python examples/own_teacher.py

It needs a convolution that cuts the patches, its blocks in one ModuleList, an output `last_hidden_state` whose last
tokens are those of the patches, and a config with ViT's names for sizes and depth.
"""

import torch
from digits import SIZE, STUDENT, TEACHER, arguments, distil, train_on_labels
from torch import nn
from transformers import PreTrainedModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from hgkd_hf import HGKDConfig, HGKDForPreTraining, PatchTeacher, SparseUNetConfig


class OwnViT(PreTrainedModel):
    """A transformer without class token, of torch's own blocks."""

    config_class, main_input_name = ViTConfig, "pixel_values"

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.positions = nn.Embedding((config.image_size // patch) ** 2, width)
        sizes = {"nhead": config.num_attention_heads, "dim_feedforward": config.intermediate_size}
        block = nn.TransformerEncoderLayer(width, **sizes, dropout=0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, config.num_hidden_layers, enable_nested_tensor=False)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutput:
        tokens = self.patches(pixel_values).flatten(2).mT + self.positions.weight
        return BaseModelOutput(last_hidden_state=self.encoder(tokens))


def main() -> None:
    args = arguments(__doc__, "own-teacher-example")
    train_on_labels(OwnViT(TEACHER), args).save_pretrained(args.output_dir / "teacher")

    # The targets are what its second block gives, and what it gives at its end.
    teacher = PatchTeacher(OwnViT.from_pretrained(args.output_dir / "teacher"), layers=(2, -1))
    student = SparseUNetConfig(encoder_config=STUDENT, decoder_width=64)
    config = HGKDConfig.for_teacher(teacher, student, image_size=SIZE, mask_ratio=0.5)
    distil(HGKDForPreTraining(config).attach_teacher(teacher), args)


if __name__ == "__main__":
    main()
