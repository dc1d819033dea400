"""Any `nn.Module` that computes feature maps as a student: torchvision's backbones, YOLO's, one's own.

The module is wrapped, not changed: forward hooks take the outputs of the layers that are named, and its weights are
saved under its own names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from ..sparse.convert import leave_out
from .code import NetworkError, allow_code, build_network

SURVEY_SIDE = 256  # pixels: a multiple of every usual stride


class ModuleBackboneConfig(PreTrainedConfig):
    """Configuration of a `ModuleBackbone`.

    Args:
        factory: import path of what builds the module, `package.module:function`; see `allow_code`.
        arguments: keyword arguments of the factory, as JSON has them.
        layers: names of the modules whose outputs are the feature maps, finest first. Default: of all modules that
            give maps of one size, the last of those that are nested least.
    """

    model_type = "module_backbone"

    factory: str = ""
    arguments: dict[str, Any] | None = None
    layers: list[str] | tuple[str, ...] = ()
    num_channels: int = 3

    @classmethod
    def for_factory(cls, factory: Callable[..., nn.Module], **arguments: Any) -> ModuleBackboneConfig:
        """The config of what `factory(**arguments)` builds, which this process may build from now on."""
        return cls(factory=allow_code(factory), arguments=arguments)


class _AllReached(Exception):
    """Ends a forward in which all maps are known: a classifier behind them is not needed."""


class ModuleBackbone(PreTrainedModel):
    """A module of any library as a model of transformers with `hidden_states`, as `feature_scales` reads them.

    Its forward ends where the last of the layers has been computed. What stands behind that, e.g. a classifier, is
    kept and saved, but not trained.

    Args:
        config: its configuration.

    Raises:
        NetworkError: the factory is not allowed, there is no layer of such a name, or one gives no map.
    """

    config_class = ModuleBackboneConfig
    base_model_prefix = "module"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    def __init__(self, config: ModuleBackboneConfig):
        super().__init__(config)
        device = torch.get_default_device()
        # Also where transformers builds on the meta device: not every function can, and the survey computes.
        with torch.device("cpu"), torch.random.fork_rng(devices=(), enabled=device.type == "meta"):
            self.module = build_network(config.factory, config.arguments or {})
            self._survey()
        self.module.to(device)
        if device.type != "meta":
            for module in self.modules():  # its own initialisation is what counts
                module._is_hf_initialized = True
        self.post_init()

    @property
    def base_model(self) -> ModuleBackbone:
        """Itself: nothing stands around the backbone."""
        return self

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithNoAttention:
        """Images (B, 3, H, W) to `last_hidden_state`, the map of the last layer, and all maps as `hidden_states`.

        Raises:
            RuntimeError: the module's forward ended before all layers were computed.
        """
        maps: dict[str, Tensor] = {}
        self._run(pixel_values, {name: self.module.get_submodule(name) for name in self.config.layers}, maps)
        if len(maps) < len(self.config.layers):
            missing = next(name for name in self.config.layers if name not in maps)
            raise RuntimeError(f"the forward of {self.config.factory} did not compute the layer {missing!r}.")
        states = tuple(maps[name] for name in self.config.layers)
        return BaseModelOutputWithNoAttention(states[-1], states if output_hidden_states else None)

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As every model's, with the module's own names of its weights."""
        state = kwargs.pop("state_dict", None) or self.state_dict()
        prefix = f"{self.base_model_prefix}."
        super().save_pretrained(
            save_directory, state_dict={name.removeprefix(prefix): value for name, value in state.items()}, **kwargs
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What no checkpoint holds has the values that the factory gives it."""
        name = next((name for name, own in self.module.named_modules() if own is module), None)
        tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if name is None or not tensors:
            return
        with torch.device("cpu"), torch.random.fork_rng(devices=()):
            fresh = build_network(self.config.factory, self.config.arguments or {}).get_submodule(name)
        for key, tensor in tensors.items():
            init.copy_(tensor, getattr(fresh, key).to(tensor))

    def _run(self, pixel_values: Tensor, layers: dict[str, nn.Module], maps: dict[str, Tensor]) -> None:
        """One forward, which ends as soon as all layers have put their output into `maps`."""

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
                maps[name] = output
                if len(maps) == len(layers):
                    raise _AllReached

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
        try:
            self.module(pixel_values)
        except _AllReached:
            pass
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _survey(self) -> None:
        """Look at one forward: choose the layers where none are named, and leave out what they do not need."""
        training, modules = self.module.training, dict(self.module.named_modules())
        for name in self.config.layers:
            if name not in modules:
                raise NetworkError(
                    f"{self.config.factory} has no module {name!r}: choose layers from "
                    f"{', '.join(name for name, _ in self.module.named_children())}, or from the modules within."
                )
        self.module.eval()
        image = torch.zeros(1, self.config.num_channels, SURVEY_SIDE, SURVEY_SIDE)
        outputs: dict[str, Any] = {}
        if not self.config.layers:
            named = {name: module for name, module in modules.items() if name}
            self._run(image, named, outputs)
            self.config.layers = _layers_by_stride(outputs)
            outputs.clear()
        computed = {name: modules[name] for name in self.config.layers}
        reached: set[nn.Module] = set()
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: reached.add(module)) for module in modules.values()
        ]
        try:
            self._run(image, computed, outputs)
        finally:
            for hook in hooks:
                hook.remove()
        for name in self.config.layers:
            if not _is_map(outputs.get(name)):
                raise NetworkError(f"the module {name!r} of {self.config.factory} gives no feature map (layers).")
        for module in modules.values():
            if module not in reached and not any(child in reached for child in module.modules()):
                leave_out(module.requires_grad_(False))
        self.module.train(training)


def _is_map(output: Any) -> bool:
    """Whether an output is a feature map of the survey's image: (1, C, h, w) of several positions."""
    return isinstance(output, Tensor) and output.dim() == 4 and 1 < output.shape[2] == output.shape[3] < SURVEY_SIDE


def _layers_by_stride(outputs: dict[str, Any]) -> list[str]:
    """For each size of maps the last module of those nested least, finest map first.

    Args:
        outputs: of the modules, by name, in the order in which they were computed.
    """
    chosen: dict[int, str] = {}
    for name, output in outputs.items():
        if _is_map(output):
            side = output.shape[2]
            if side not in chosen or name.count(".") <= chosen[side].count("."):
                chosen[side] = name
    return [chosen[side] for side in sorted(chosen, reverse=True)]


AutoConfig.register("module_backbone", ModuleBackboneConfig)
AutoModel.register(ModuleBackboneConfig, ModuleBackbone)
