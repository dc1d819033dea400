"""The UNet-style student: a stock CNN on visible cells, mask tokens where nothing was seen, and a light decoder.

Encoder, densify and decoder follow SparK (2301.03580, section 3 and its released recipe as far as papers describe it);
the encoder is an unchanged `AutoModel`, so that it leaves as a stock checkpoint.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutputWithNoAttention, SemanticSegmenterOutput
from transformers.utils import ModelOutput

from ...sparse import checkpoint_blocks, sparsify, to_dense, uncheckpoint_blocks, visible
from ...sparse.masking import VisibleCells, cell_grid
from ..features import FeatureScale, feature_scales, pooled_features
from .configuration_sparse_unet import SparseUNetConfig
from .encoder import build_encoder


@dataclass
class SparseUNetModelOutput(ModelOutput):
    """Output of `SparseUNetModel`.

    Args:
        last_hidden_state: (B, D, H / decoder_stride, W / decoder_stride), the decoder's map; None without decoder.
        pooler_output: (B, C), the encoder's deepest map averaged over (visible) positions.
        feature_maps: the encoder's maps, finest first, zeros at hidden positions; with `output_hidden_states=True`.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SparseUNetDensify(nn.Module):
    """One scale's visible features, normalised, with a learned token at hidden positions, in the decoder's width."""

    def __init__(self, channels: int, width: int, deepest: bool, batch_norm: bool, mask_token: bool):
        super().__init__()
        self.norm = sparsify(nn.Sequential(nn.BatchNorm2d(channels)))[0] if batch_norm else ChannelLayerNorm(channels)
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1)) if mask_token else None
        kernel = 1 if deepest else 3
        self.projection = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        if deepest and channels == width:
            self.projection = nn.Identity()

    def fill(self, feature_map: Tensor, cells: VisibleCells | None) -> Tensor:
        """Normalised dense map (B, C, H, W) to (B, width, H, W)."""
        if cells is not None:
            token = self.mask_token.to(feature_map.dtype)
            feature_map = torch.where(cells.visible(feature_map.shape[-2:]), feature_map, token)
        return self.projection(feature_map)


class SparseUNetUpBlock(nn.Module):
    """Twice the resolution by a transposed convolution, then two 3x3 convolutions with BatchNorm, as in SparK."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels, 4, stride=2, padding=1)
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU6(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, 2H, 2W)."""
        return self.convolutions(self.up(x))


class SparseUNetContext(nn.Module):
    """Lets positions look at each other where no other layer of the decoder does: x + scale * 1x1(GELU(7x7(x))).

    The 7x7 convolution is depthwise. The scales of the channels begin at zero, so that a decoder which was trained
    without this block computes what it did.
    """

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return x + self.scale.view(1, -1, 1, 1) * self.pointwise(F.gelu(self.depthwise(x)))


class SparseUNetDecoder(nn.Module):
    """From the deepest scale up to `decoder_stride`; scales on the way are added where the resolution meets theirs."""

    def __init__(self, config: SparseUNetConfig, scales: tuple[FeatureScale, ...], batch_norm: bool):
        super().__init__()
        deepest = scales[-1].stride
        widths = config.decoder_widths
        self.scales = tuple(scale for scale in scales if scale.stride in widths)
        self.densify = nn.ModuleList(
            SparseUNetDensify(s.channels, widths[s.stride], s.stride == deepest, batch_norm, config.use_mask_token)
            for s in self.scales
        )
        # Without a block that doubles the resolution nothing would look beyond a position.
        self.context = None if len(widths) > 1 else SparseUNetContext(config.decoder_width)
        strides = list(widths)
        self.blocks = nn.ModuleList(
            SparseUNetUpBlock(widths[coarse], widths[fine]) for coarse, fine in pairwise(strides)
        )

    def forward(self, feature_maps: dict[int, Tensor], cells: VisibleCells | None) -> Tensor:
        """Normalised maps by stride to (B, width, H / decoder_stride, W / decoder_stride)."""
        laterals = {
            scale.stride: densify.fill(feature_maps[scale.stride], cells)
            for scale, densify in zip(self.scales, self.densify)
        }
        stride = self.scales[-1].stride
        x = laterals[stride]
        for block in self.blocks:
            x = block(x)
            stride //= 2
            if stride in laterals:
                x = x + laterals[stride]
        return x if self.context is None else self.context(x)


class SparseUNetPreTrainedModel(PreTrainedModel):
    """Weights, loading and saving of every SparseUNet class."""

    config_class = SparseUNetConfig
    base_model_prefix = "sparse_unet"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    input_modalities = ("image",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SparseUNetDensify) and module.mask_token is not None:
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
        elif isinstance(module, SparseUNetContext):
            init.zeros_(module.scale)
        elif isinstance(module, nn.ConvTranspose2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Conv2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)


class SparseUNetModel(SparseUNetPreTrainedModel):
    """A stock CNN as sparse encoder, densified by mask tokens, with a UNet decoder.

    Args:
        config: its configuration.
        add_decoder: False leaves the decoder out that the configuration has, for tasks that use the encoder only.

    Attributes:
        sparse_backend: `"cells"`, `"masked"`, `"spconv"` or `"triton"`, what masked forwards compute with (see
            `visible`): a choice of the run, without effect on any result but its rounding, and not saved.

    Raises:
        ValueError: with mask tokens, the encoder mixes positions in a way that no mask can follow; the message names
            the module.
    """

    sparse_backend = "cells"

    def __init__(self, config: SparseUNetConfig, add_decoder: bool = True):
        super().__init__(config)
        self.scales = feature_scales(config.encoder_config)
        self.total_stride = self.scales[-1].stride
        self.encoder = checkpoint_blocks(build_encoder(config))
        batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.encoder.modules())
        decodes = add_decoder and config.use_decoder
        self.decoder = SparseUNetDecoder(config, self.scales, batch_norm) if decodes else None
        self.post_init()

    @classmethod
    def from_encoder(cls, name_or_path: str, *, revision: str | None = None, **config_kwargs) -> SparseUNetModel:
        """A student whose encoder starts from a stock checkpoint (Hub id or folder), with a fresh decoder."""
        encoder = AutoModel.from_pretrained(name_or_path, revision=revision, use_safetensors=True, dtype=torch.float32)
        model = cls(SparseUNetConfig(encoder_config=encoder.config, **config_kwargs))
        model.encoder.load_state_dict(encoder.state_dict())
        return model

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        visible_per_image: int | None = None,
        **kwargs,
    ) -> SparseUNetModelOutput:
        """Encode the visible cells and decode.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            bool_masked_pos: (B, H / cell_size, W / cell_size) bool, True = hidden; None = everything is visible.
            output_hidden_states: return the encoder's maps too.
            visible_per_image: the number of cells that the mask leaves visible in every image, where it is known, so
                that an accelerator need not be waited for to count them.

        Raises:
            ValueError: the image is not a multiple of the cells, which mask and decoder need, the mask has another
                grid or another number of visible cells, or there are no mask tokens.
        """
        cells = None
        if bool_masked_pos is not None or self.decoder is not None:
            grid = cell_grid(tuple(pixel_values.shape[-2:]), self.config.cell_size)
        if bool_masked_pos is not None:
            if not self.config.use_mask_token:
                raise ValueError("this student has no mask tokens (use_mask_token): give no bool_masked_pos.")
            if bool_masked_pos.shape[-2:] != grid:
                raise ValueError(
                    f"bool_masked_pos has a grid of {tuple(bool_masked_pos.shape[-2:])}, but images of "
                    f"{tuple(pixel_values.shape[-2:])} pixels have {grid} cells of {self.config.cell_size} pixels."
                )
            cells = VisibleCells(bool_masked_pos, visible_per_image)
        feature_maps, pooled, normalised = self.encode(pixel_values, cells, bool(output_hidden_states))
        decoded = None if self.decoder is None else self.decoder(normalised, cells)
        return SparseUNetModelOutput(decoded, pooled, feature_maps)

    # Index tables depend on the mask: compiled, the encoder would be compiled anew for every batch.
    @torch.compiler.disable
    def encode(
        self, pixel_values: Tensor, cells: VisibleCells | None, output_feature_maps: bool
    ) -> tuple[tuple[Tensor, ...] | None, Tensor, dict[int, Tensor]]:
        """Encoder maps if asked for, the pooled feature (B, C), and the decoder's normalised maps by stride."""
        densify = {}
        if self.decoder is not None:
            densify = {scale.stride: layer for scale, layer in zip(self.decoder.scales, self.decoder.densify)}
        if cells is None:
            states = self.encoder(pixel_values, output_hidden_states=True).hidden_states
            maps = {scale.stride: states[scale.index] for scale in self.scales}
            normalised = {stride: layer.norm(maps[stride]) for stride, layer in densify.items()}
            pooled = maps[self.total_stride].mean((2, 3))
            return tuple(maps.values()) if output_feature_maps else None, pooled, normalised
        with visible(cells, self.sparse_backend) as sparse:
            states = self.encoder(sparse.enter(pixel_values), output_hidden_states=True).hidden_states
            maps = {scale.stride: states[scale.index] for scale in self.scales}
            # Back to dense maps only what somebody reads.
            normalised = {stride: sparse.leave(layer.norm(maps[stride])) for stride, layer in densify.items()}
            deepest = sparse.leave(maps[self.total_stride])
            feature_maps = tuple(sparse.leave(m) for m in maps.values()) if output_feature_maps else None
        positions = deepest.shape[2] * deepest.shape[3] / (cells.grid[0] * cells.grid[1])
        pooled = deepest.sum((2, 3)) / (cells.cells_per_image[:, None] * positions)
        return feature_maps, pooled, normalised

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """One vector (B, C) an image, from the dense encoder: the pooled output of its stock checkpoint."""
        return pooled_features(self.encoder, pixel_values)

    def to_native(self) -> PreTrainedModel:
        """The encoder as a stock transformers model with stock keys; a copy, in eval mode."""
        return uncheckpoint_blocks(to_dense(copy.deepcopy(self.encoder))).eval()


class SparseUNetBackbone(BackboneMixin, SparseUNetPreTrainedModel):
    """The encoder's maps as a transformers backbone; loads any SparseUNet checkpoint and drops its decoder."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = (r"^(sparse_unet\.)?decoder\.",)

    def __init__(self, config: SparseUNetConfig):
        super().__init__(config)
        self.sparse_unet = SparseUNetModel(config, add_decoder=False)
        self.num_features = [scale.channels for scale in self.sparse_unet.scales]
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs) -> BackboneOutput:
        """Images (B, 3, H, W) to `feature_maps`, one (B, C, H / stride, W / stride) for each of `out_features`."""
        maps = self.sparse_unet(pixel_values, output_hidden_states=True).feature_maps
        wanted = [feature_map for name, feature_map in zip(self.stage_names, maps) if name in self.out_features]
        return BackboneOutput(feature_maps=tuple(wanted))


class SparseUNetForImageClassification(SparseUNetPreTrainedModel):
    """The encoder with a linear classifier on its pooled feature."""

    _keys_to_ignore_on_load_unexpected = (r"^(sparse_unet\.)?decoder\.",)

    def __init__(self, config: SparseUNetConfig):
        super().__init__(config)
        self.sparse_unet = SparseUNetModel(config, add_decoder=False)
        self.classifier = nn.Linear(self.sparse_unet.scales[-1].channels, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs
    ) -> ImageClassifierOutputWithNoAttention:
        """Images (B, 3, H, W) and, for a loss, labels (B,) to logits (B, num_labels)."""
        logits = self.classifier(self.sparse_unet(pixel_values).pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def to_native(self) -> PreTrainedModel:
        """The stock image-classification class of the encoder with this encoder and classifier.

        Raises:
            ValueError: the stock class has another head than one linear layer on the pooled feature.
        """
        encoder_config = copy.deepcopy(self.config.encoder_config)
        encoder_config.id2label, encoder_config.label2id = self.config.id2label, self.config.label2id
        native = AutoModelForImageClassification.from_config(encoder_config)
        native.base_model.load_state_dict(self.sparse_unet.encoder.state_dict())
        own = {id(module) for module in native.base_model.modules()}
        heads = [m for m in native.modules() if isinstance(m, nn.Linear) and id(m) not in own]
        if len(heads) != 1 or heads[0].weight.shape != self.classifier.weight.shape:
            raise ValueError(f"{type(native).__name__} has no single linear classifier to take this one's weights.")
        heads[0].load_state_dict(self.classifier.state_dict())
        return native.eval()


class SparseUNetForSemanticSegmentation(SparseUNetPreTrainedModel):
    """The encoder with its UNet decoder, pre-trained or fresh, and a linear classifier of every position."""

    def __init__(self, config: SparseUNetConfig):
        config = copy.deepcopy(config)
        config.use_mask_token = False  # whole images hide nothing; parameters without gradient would stop DDP
        config.use_decoder = True
        super().__init__(config)
        self.sparse_unet = SparseUNetModel(config)
        self.classifier = nn.Conv2d(config.decoder_widths[config.decoder_stride], config.num_labels, 1)
        self.post_init()

    @classmethod
    def from_student(
        cls, name_or_path: str, *, revision: str | None = None, decoder_stride: int = 4, **config_kwargs
    ) -> SparseUNetForSemanticSegmentation:
        """A segmenter from a pre-trained student (`SparseUNetModel`), with the decoder kept.

        Args:
            name_or_path, revision: the student's folder (`run/student/sparse_unet`) or Hub id.
            decoder_stride: pixels per position of the classifier's input. Blocks that the student's decoder lacks on
                the way there are fresh, those that it has beyond are left out.
            config_kwargs: further fields of the config, such as `id2label` and `label2id`.

        Raises:
            ValueError: the student has no decoder.
        """
        student = SparseUNetModel.from_pretrained(
            name_or_path, revision=revision, use_safetensors=True, dtype=torch.float32
        )
        if student.decoder is None:
            raise ValueError(
                f"{name_or_path!r} has no decoder to keep: pre-train it with `hgkd distill --decoder truncated`, or "
                "give the folder above it, which holds the student alone."
            )
        settings = student.config.to_dict() | {"decoder_stride": decoder_stride, "architectures": None}
        model = cls(SparseUNetConfig(**(settings | config_kwargs)))
        model.sparse_unet.encoder.load_state_dict(student.encoder.state_dict())
        own, other = model.sparse_unet.decoder, student.decoder
        for block, pretrained in zip(own.blocks, other.blocks):  # deepest first in both
            block.load_state_dict(pretrained.state_dict())
        densify = dict(zip((scale.stride for scale in other.scales), other.densify))
        for scale, layer in zip(own.scales, own.densify):
            if scale.stride in densify:
                state = densify[scale.stride].state_dict()
                layer.load_state_dict({name: value for name, value in state.items() if name != "mask_token"})
        if own.context is not None and other.context is not None:
            own.context.load_state_dict(other.context.state_dict())
        return model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> SemanticSegmenterOutput:
        """Classify every pixel.

        Args:
            pixel_values: (B, 3, H, W) of any size; padded with zeros inside to a multiple of the cells.
            labels: (B, H, W) classes, `config.semantic_loss_ignore_index` where none; for a loss.

        Returns:
            `logits` (B, num_labels, H, W).
        """
        height, width = pixel_values.shape[-2:]
        padding = (-width % self.config.cell_size, -height % self.config.cell_size)
        padded = F.pad(pixel_values, (0, padding[0], 0, padding[1]))
        logits = self.classifier(self.sparse_unet(padded).last_hidden_state)
        logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits[..., :height, :width]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(loss=loss, logits=logits)
