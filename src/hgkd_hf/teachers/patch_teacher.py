"""Frozen vision transformers as teachers: an image goes in, patch features on their grid come out.

One adapter serves the ViT-like models of transformers, because they agree on three things: the first convolution on
the pixels cuts the patches (its stride is the patch size), special tokens (class, registers) come before the patch
tokens, and the blocks stand in one `ModuleList`. Only ViTMAE, which masks inside the model, has lines of its own.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.errors import GatedRepoError
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedModel, ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import ModelOutput

from ..sparse.masking import expand_mask
from .checkpoint import image_statistics, load_weights, resolve_revision
from .checks import check_config, check_image_size, check_input, check_layers, check_whole, not_a_vit
from .frozen import FrozenTeacher
from .named import teacher_source
from .visible import drop_others, put_back, visible_tokens

UPPER_HALF = 0  # as one of `layers`


@dataclass
class PatchTeacherOutput(ModelOutput):
    """What a teacher sees in a batch of images.

    Attributes:
        feature_maps: one (B, D, th, tw) float32 map for each of the teacher's `layers`, in their order.
        pooled: (B, D) float32, the mean over the patch tokens of the last map (special tokens are left out, so that it
            means the same for every model); the teacher's image feature in a kNN evaluation.
        class_token: (B, D) float32, the class token of the final output; None where there is none.
    """

    feature_maps: tuple[Tensor, ...] | None = None
    pooled: Tensor | None = None
    class_token: Tensor | None = None


class PatchTeacher(FrozenTeacher):
    """A frozen ViT that returns chosen layers' patch features on their grid.

    The teacher takes `model` over: it is frozen for good, put in eval mode, reduced to its vision encoder and to the
    blocks that `layers` need. Of CLIP and SigLIP only the vision tower stays.

    Args:
        model: any transformers model around a ViT, e.g. `ViTModel`, `CLIPModel`, `ViTForImageClassification`.
        layers: -1 is the encoder's `last_hidden_state` (after the final norm, where the model has one); i in 1..L is
            the output of the i-th of its L blocks, before that norm; 0 is the mean of the outputs of the upper half
            of them, each layer-normalised at every position, as data2vec's training targets are (arXiv 2202.03555).
            Hierarchical models (Swin, Hiera) only have -1. None stands for (0,), of these for (-1,), of a MAE's
            decoder for its middle block.
        image_size: pixels, int or (H, W), that the teacher works at; default: the model config's.
        image_mean, image_std: the teacher's own normalisation of RGB values in [0, 1].
        teacher_input: "full": the teacher sees all pixels. "masked": it sees the visible cells only. A
            `ViTMAEForPreTraining` then encodes the visible tokens and its decoder infers the rest, as in G2SD
            (arXiv 2302.14771): `layers` count *decoder* blocks (-1: after the decoder's norm; None: the middle one, 4
            of 8). In every other flat ViT the patch embedding of a hidden token is replaced by the model's mask token,
            or by zero where it has none; its position embedding stays. "visible": hidden tokens are dropped before the
            first block, and maps are zero there, so that the teacher costs the visible share.
        name_or_path, revision: where the weights came from; kept for configs, cards and messages.

    Attributes:
        patch_size: pixels on a side of one token of the maps (the total stride, in a hierarchical model).
        grid: (th, tw), the maps' size in tokens.
        hidden_sizes: D of each map.

    Raises:
        ValueError: the model is no ViT, or an argument does not go with it; the message names the argument.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] | None = (-1,),
        image_size: int | tuple[int, int] | None = None,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        teacher_input: str = "full",
        name_or_path: str | None = None,
        revision: str | None = None,
    ):
        name = name_or_path or type(model).__name__
        check_config(model.config, name)
        config = getattr(model.config, "vision_config", model.config)
        check_input(teacher_input, config, name)
        hierarchical = hasattr(config, "depths")
        if teacher_input == "masked" and config.model_type == "vit_mae":
            if not isinstance(model, ViTMAEForPreTraining):
                raise ValueError(
                    f"teacher_input='masked' lets a vit_mae's decoder infer the hidden patches, but {name!r} comes "
                    f"without it: use a ViTMAEForPreTraining checkpoint or teacher_input='full'."
                )
        else:
            headless = MODEL_MAPPING.get(type(model.config), None) is type(model)
            model = model if headless else model.base_model
            model = getattr(model, "vision_model", model)  # of a dual encoder
        super().__init__(model, image_mean, image_std, name_or_path, revision, teacher_input)
        self.config = config

        convolution = self._patch_convolution()
        if convolution is None:
            raise ValueError(not_a_vit(config, name))
        self.patch_size = convolution.stride[0] * 2 ** (len(config.depths) - 1 if hierarchical else 0)
        image_size = getattr(config, "image_size", None) if image_size is None else image_size
        self.image_size = check_image_size(image_size, self.patch_size)
        self.grid = (self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size)

        blocks = nn.ModuleList() if hierarchical else self._find_blocks()
        if layers is None:
            layers = ((UPPER_HALF if blocks else -1) if self._decoder is None else max(1, len(blocks) // 2),)
        self.layers = check_layers(layers, len(blocks), name)
        self._upper_half = range(len(blocks) // 2 + 1, len(blocks) + 1) if UPPER_HALF in self.layers else ()
        if not {-1, UPPER_HALF} & {*self.layers}:
            del blocks[max(self.layers) :]  # the blocks above the highest wanted one are neither computed nor kept
        self._blocks = list(blocks)  # a plain list, because the modules are already registered under `model`
        if self._decoder is not None:
            self._resize_decoder_positions()
        self.hidden_sizes = tuple(feature_map.shape[1] for feature_map in self._probe(name))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        layers: Sequence[int] | None = (-1,),
        image_size: int | tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        teacher_input: str = "full",
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> PatchTeacher:
        """Load a teacher of `TEACHERS`, the Hub or a folder: safetensors only, without remote code, in `dtype`.

        Mean and std are read from the checkpoint's image processor file; ImageNet's are used, with a warning, when it
        has none. `revision` (branch, tag or commit) is resolved to a commit sha first and every file is taken from
        it; offline, the sha is that of the cached files. See the class for the other arguments.

        Raises:
            ValueError: the checkpoint is no ViT (said before its weights are loaded), lacks weights, or an argument
                does not go with it.
            PermissionError: the repository is gated and this account may not read it.
            OSError: the Hub's own error for a repository, revision or file that is not there.
        """
        name, revision = teacher_source(os.fspath(name_or_path), revision)
        masked = teacher_input == "masked"
        revision = resolve_revision(name, revision, token, local_files_only)
        hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        except OSError as error:
            if isinstance(error.__cause__, GatedRepoError):
                raise PermissionError(
                    f"the teacher {name} is gated: accept its terms on https://huggingface.co/{name}, "
                    f"then log in with `hf auth login`."
                ) from error
            raise
        check_config(config, name)
        check_input(teacher_input, getattr(config, "vision_config", config), name)
        config = getattr(config, "vision_config", config)  # of a dual encoder only the vision tower is built

        if masked and config.model_type == "vit_mae":
            loader, arguments = ViTMAEForPreTraining, {}
        else:
            loader, accepted = AutoModel, inspect.signature(MODEL_MAPPING.get(type(config), AutoModel)).parameters
            wanted = {"add_pooling_layer": False, "use_mask_token": masked}
            arguments = {key: value for key, value in wanted.items() if key in accepted}
        model, loading = load_weights(loader, name, config=config, dtype=dtype, **arguments, **hub)
        # An absent mask token is initialised to zero, which is what stands for it; anything else would be random.
        missing = (key for key in loading["missing_keys"] if not key.endswith("embeddings.mask_token"))
        check_whole(model, missing, name)
        mean, std = image_statistics(name, hub)
        return cls(model, layers, image_size, mean, std, teacher_input, name, revision)

    @staticmethod
    def patch_size_of(name_or_path: str | os.PathLike, *, revision: str | None = None) -> int:
        """Pixels on a side of one token of a checkpoint, from its config alone.

        Raises:
            ValueError: the checkpoint is no ViT.
        """
        name, revision = teacher_source(os.fspath(name_or_path), revision)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_config(config, name)
        config = getattr(config, "vision_config", config)
        patch_size = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        return patch_size * 2 ** (len(config.depths) - 1 if hasattr(config, "depths") else 0)

    @property
    def encoder(self) -> nn.Module:
        """The ViT that sees the image: `model` itself, unless that is a MAE with its decoder."""
        return self.model if self._decoder is None else self.model.vit

    @property
    def _decoder(self) -> nn.Module | None:
        return self.model.decoder if isinstance(self.model, ViTMAEForPreTraining) else None

    @torch.no_grad()
    def forward(self, images: Tensor, bool_masked_pos: Tensor | None = None) -> PatchTeacherOutput:
        """Features of `images`, without gradients.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], *not* normalised, on the teacher's device; resized if need be.
            bool_masked_pos: (B, gh, gw) bool, True = hidden, on the student's cells; required, unless `teacher_input`
                is "full": then it is ignored.

        Raises:
            ValueError: a shape is wrong; the cells do not divide the image or the token grid; where hidden tokens are
                dropped, images differ in their number of visible cells.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape (batch, 3, height, width), not {tuple(images.shape)}.")
        images, hidden = images.float(), None
        if self.teacher_input != "full":
            if (
                bool_masked_pos is None
                or (bool_masked_pos.dim(), bool_masked_pos.dtype) != (3, torch.bool)
                or len(bool_masked_pos) != len(images)
            ):
                given = None if bool_masked_pos is None else (bool_masked_pos.dtype, tuple(bool_masked_pos.shape))
                raise ValueError(
                    f"with teacher_input={self.teacher_input!r} the teacher needs bool_masked_pos, a bool tensor "
                    f"({len(images)}, grid rows, grid columns), but got {given}."
                )
            hidden = expand_mask(bool_masked_pos, self.grid)
            # Resizing mixes neighbouring pixels: what is hidden must be gone before it.
            hidden_pixels = expand_mask(bool_masked_pos, tuple(images.shape[-2:])).unsqueeze(1)
            images = torch.where(hidden_pixels, self.image_mean.float(), images)
        feature_maps, class_token = self._run(self.normalise(images, self.image_size), hidden)
        pooled = feature_maps[-1].mean(dim=(2, 3))
        if self.teacher_input == "visible":
            pooled = pooled / (~hidden).float().mean((1, 2)).unsqueeze(1)
        return PatchTeacherOutput(feature_maps, pooled, class_token)

    def _run(self, pixel_values: Tensor, hidden: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Maps and class token of normalised pixels; `hidden` (B, th, tw) bool tells the tokens it must not see."""
        outputs: dict[int, Tensor] = {}
        places = visible_tokens(hidden) if self.teacher_input == "visible" and hidden is not None else None
        taps = {layer: self._blocks[layer - 1] for layer in {*self.layers, *self._upper_half} - {-1, UPPER_HALF}}
        if self._decoder is not None:
            taps[-1] = self._decoder.decoder_norm
        with ExitStack() as hooks:
            for layer, module in taps.items():
                hooks.enter_context(module.register_forward_hook(_keep(outputs, layer)))
            if self.config.model_type == "vit_mae":
                final = self._run_mae(pixel_values, hidden)
            else:
                if places is not None:
                    drop = drop_others(places, self.grid[0] * self.grid[1])
                    hooks.enter_context(self._blocks[0].register_forward_pre_hook(drop))
                elif hidden is not None:
                    hooks.enter_context(self._patch_convolution().register_forward_hook(self._hide(hidden)))
                final = self._encode(pixel_values).last_hidden_state
        outputs.setdefault(-1, final)
        if self._upper_half:
            blocks = [outputs[layer].float() for layer in self._upper_half]
            outputs[UPPER_HALF] = sum(F.layer_norm(tokens, tokens.shape[-1:]) for tokens in blocks) / len(blocks)
        # Special tokens come first, so the patch tokens are the last ones.
        count = self.grid[0] * self.grid[1] if places is None else places.shape[1]
        tokens = [outputs[layer][:, -count:] for layer in self.layers]
        maps = [t.mT.unflatten(2, self.grid) if places is None else put_back(t, places, self.grid) for t in tokens]
        has_class_token = -1 in self.layers and final.dim() == 3 and final.shape[1] > count
        return tuple(m.float().contiguous() for m in maps), final[:, 0].float() if has_class_token else None

    def _encode(self, pixel_values: Tensor, **arguments: Tensor) -> ModelOutput:
        if "interpolate_pos_encoding" in inspect.signature(self.encoder.forward).parameters:
            arguments["interpolate_pos_encoding"] = True
        return self.encoder(pixel_values, **arguments)

    def _run_mae(self, pixel_values: Tensor, hidden: Tensor | None) -> Tensor:
        """Run a MAE's encoder on the visible tokens only and, when it has one, its decoder on all.

        MAE shuffles its patches even at mask ratio 0: a `noise` that counts up keeps them in order, hidden ones last.
        """
        tokens = visible = self.grid[0] * self.grid[1]
        noise = torch.arange(tokens, dtype=torch.float32, device=pixel_values.device).expand(len(pixel_values), -1)
        if hidden is not None:
            visible = visible_tokens(hidden).shape[1]
            noise = noise + hidden.flatten(1) * tokens
        # MAE keeps int(tokens * (1 - ratio)) of them: the half keeps rounding from losing one.
        self.encoder.embeddings.config.mask_ratio = max(0.0, 1 - (visible + 0.5) / tokens)
        encoded = self._encode(pixel_values, noise=noise)
        if self._decoder is not None:
            self._decoder(encoded.last_hidden_state, encoded.ids_restore)
        return encoded.last_hidden_state

    def _hide(self, hidden: Tensor) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
        """Hook for the patch convolution: hidden tokens become the mask token, or zero, before positions are added."""
        mask_token = next((p for key, p in self.encoder.named_parameters() if key.endswith("mask_token")), None)

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            token = output.new_zeros(()) if mask_token is None else mask_token.view(1, -1, 1, 1).to(output.dtype)
            return torch.where(hidden.unsqueeze(1), token, output)

        return hook

    def _patch_convolution(self) -> nn.Conv2d | None:
        modules = self.encoder.modules()
        return next((m for m in modules if isinstance(m, nn.Conv2d) and m.in_channels == 3), None)

    def _find_blocks(self) -> nn.ModuleList:
        if self._decoder is not None:
            return self._decoder.decoder_layers
        depth = getattr(self.config, "num_hidden_layers", 0)
        lists = (module for module in self.encoder.modules() if isinstance(module, nn.ModuleList))
        return next((blocks for blocks in lists if len(blocks) == depth), nn.ModuleList())

    def _resize_decoder_positions(self) -> None:
        """Bring the MAE decoder's position table to this grid, in two dimensions.

        transformers (5.23) interpolates this table along the flattened sequence, which mixes up rows and columns.
        """
        decoder = self._decoder
        class_position, table = decoder.decoder_pos_embed.split([1, decoder.decoder_pos_embed.shape[1] - 1], dim=1)
        side = math.isqrt(table.shape[1])
        if self.grid != (side, side):
            table = table.mT.unflatten(2, (side, side)).float()
            table = F.interpolate(table, self.grid, mode="bicubic").flatten(2).mT.to(class_position.dtype)
            decoder.decoder_pos_embed = nn.Parameter(torch.cat([class_position, table], 1), requires_grad=False)

    @torch.no_grad()
    def _probe(self, name: str) -> tuple[Tensor, ...]:
        """Features of one blank image: what does not behave as a ViT is found now, not in the first training step."""
        weight = self._patch_convolution().weight
        try:
            feature_maps, _ = self._run(weight.new_zeros(1, 3, *self.image_size), None)
            if any(feature_map.dim() != 4 for feature_map in feature_maps):
                raise TypeError("its output is not a sequence of tokens")
            return feature_maps
        except Exception as error:
            raise ValueError(
                f"teacher {name!r}, a {self.config.model_type} model, gives no {self.grid} grid of patch tokens for "
                f"images of {self.image_size} pixels; choose another `teacher` or image_size ({error})."
            ) from error


def _keep(outputs: dict[int, Tensor], layer: int) -> Callable[[nn.Module, tuple, Tensor | tuple], None]:
    """Forward hook that stores a block's output tokens (some types' blocks return a tuple)."""

    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    return hook
