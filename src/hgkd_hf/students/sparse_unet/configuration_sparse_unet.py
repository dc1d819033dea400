"""Configuration of the UNet-style student."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..features import feature_scales


class SparseUNetConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a `SparseUNetModel`.

    Args:
        encoder_config: config (or its dict) of any `AutoModel` CNN whose hidden states are maps at several scales,
            e.g. a `ResNetConfig`. Default: ResNet-50.
        cell_size: side of a mask cell in pixels, a multiple of the encoder's total stride. Default: that stride.
        decoder_width: channels of the decoder at the encoder's deepest scale, halved at each finer one (SparK: 768).
        decoder_stride: pixels per position of the decoder's output, the encoder's total stride divided by a power of
            two: 16 stops at a patch-16 teacher's grid, 1 goes up to the image (SparK). Default: half the total stride.
        use_decoder: whether there is a decoder; without, `SparseUNetModel` gives the encoder's maps alone.
        use_mask_token: whether there are learned tokens for hidden positions; without, every image is seen whole.
        initializer_range: standard deviation of the mask tokens' and projections' truncated normal (SparK: 0.02).
        semantic_loss_ignore_index: label of pixels that `SparseUNetForSemanticSegmentation` does not learn from.
        out_features, out_indices: stages that `SparseUNetBackbone` returns, as in every transformers backbone.

    Raises:
        ValueError: the encoder gives no maps at several scales, or `cell_size`, `decoder_stride` or `decoder_width`
            do not fit it.
    """

    model_type = "sparse_unet"
    sub_configs: ClassVar[dict[str, type]] = {"encoder_config": AutoConfig}

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    cell_size: int | None = None
    decoder_width: int = 768
    decoder_stride: int | None = None
    use_decoder: bool = True
    use_mask_token: bool = True
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255
    num_channels: int = 3

    def __post_init__(self, **kwargs):
        kwargs.pop("sparse_backend", None)  # of older configs; a choice of the run (`SparseUNetModel.sparse_backend`)
        if self.encoder_config is None:
            self.encoder_config = {"model_type": "resnet"}
        if isinstance(self.encoder_config, dict):
            self.encoder_config = AutoConfig.for_model(**self.encoder_config)
        self.num_channels = getattr(self.encoder_config, "num_channels", self.num_channels)
        scales = feature_scales(self.encoder_config)
        self.total_stride = scales[-1].stride
        self.cell_size = self.cell_size or self.total_stride
        if self.cell_size % self.total_stride:
            raise ValueError(
                f"cell_size {self.cell_size} is not a multiple of the student's total stride {self.total_stride}: "
                f"choose {max(1, round(self.cell_size / self.total_stride)) * self.total_stride}."
            )
        self.decoder_stride = self.decoder_stride or self.total_stride // 2
        _ = self.decoder_widths  # refuses what does not fit
        self.stage_names = [f"stage{number}" for number in range(1, len(scales) + 1)]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @property
    def reachable_strides(self) -> tuple[int, ...]:
        """Strides at which a decoder that doubles the resolution can stop, deepest first."""
        steps = range(self.total_stride.bit_length())
        return tuple(self.total_stride >> step for step in steps if not self.total_stride % (1 << step))

    @property
    def decoder_widths(self) -> dict[int, int]:
        """The decoder's channels at each of its strides, deepest first: `decoder_width`, halved at each step."""
        strides = self.reachable_strides
        if self.decoder_stride not in strides:
            raise ValueError(
                f"decoder_stride {self.decoder_stride} cannot be reached by doubling the resolution from stride "
                f"{self.total_stride}: choose one of {', '.join(map(str, strides))}."
            )
        steps = strides.index(self.decoder_stride)
        if self.decoder_width % (1 << steps):
            raise ValueError(
                f"decoder_width {self.decoder_width} cannot be halved {steps} times: "
                f"choose a multiple of {1 << steps}."
            )
        return {stride: self.decoder_width >> step for step, stride in enumerate(strides[: steps + 1])}
