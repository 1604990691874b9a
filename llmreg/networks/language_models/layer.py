"""One frozen pretrained decoder layer, run on tokens of images instead of text."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from llmreg.networks.language_models.families import check_runnable, head_dim, split_fused
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import LoadedLayers

_ADAPTER = "default"


class FrozenLayer(nn.Module):
    """A decoder layer with LoRA, with or without a causal mask and rotary embedding.

    Args:
        loaded: frozen layers; this module changes the one at ``position``.
        position: of the layer among them.
        settings: how it is run.
        token_grid: (d, h, w) of the tokens, w fastest.

    Raises:
        UserError: the layer cannot be run so (see :func:`llmreg.networks.language_models.families.check_runnable`).
    """

    def __init__(self, loaded: LoadedLayers, position: int, settings: LLMSettings, token_grid: Sequence[int]) -> None:
        super().__init__()
        check_runnable(loaded.config.to_dict(), settings)
        self._family, self._config = loaded.family, loaded.config
        self._index = loaded.indices[position]
        self._causal = settings.attention == "causal"
        layer = loaded.layers[position]
        # sdpa treats a missing mask as causal unless the module's is_causal is false.
        attention: Any = layer.get_submodule(self._family.attention)
        attention.is_causal = self._causal
        if settings.lora is not None:
            split_fused(layer, self._family, self._config)
            # This freezes everything else.
            inject_adapter_in_model(
                LoraConfig(
                    r=settings.lora.r, lora_alpha=settings.lora.alpha, target_modules=list(settings.lora.targets)
                ),
                layer,
                _ADAPTER,
            )
            # LoRA has the type of the frozen weights at first, and learns in float32.
            cast_adapter_dtype(layer, _ADAPTER)
        self.layer = layer
        self._dtype = next(p.dtype for p in layer.parameters() if not p.requires_grad)
        self.cos, self.sin = (
            nn.Buffer(angles, persistent=False) for angles in self._angles(settings.rotary, token_grid)
        )
        # Not used any more, but every checkpoint of version 0.1 holds it.
        self.scale = nn.Buffer(torch.tensor(1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H) float32, computed in the frozen weights' type."""
        # Autocast would copy the frozen weights to its own type at every call.
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = tokens.to(self._dtype)
            angles = (self.cos.to(self._dtype), self.sin.to(self._dtype))
            options = {"position_embeddings": angles} if self._family.rotary else {}
            return cast(Tensor, self.layer(hidden, attention_mask=self._mask(hidden), **options).float())

    def _mask(self, hidden: Tensor) -> Tensor | None:
        if not self._causal:
            return None
        types = getattr(self._config, "layer_types", None)
        sliding = (
            getattr(self._config, "sliding_window", None) is not None
            if types is None
            else types[self._index] == "sliding_attention"
        )
        make = create_sliding_window_causal_mask if sliding else create_causal_mask
        # With sdpa it is None: then the module's is_causal makes the attention causal.
        mask = make(
            config=self._config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=torch.arange(hidden.shape[1], device=hidden.device)[None],
        )
        return cast("Tensor | None", mask)

    def _angles(self, rotary: Literal["none", "1d", "3d"], token_grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        # Cos and sin of the rotary embedding, (1, L, D); (1, 1, D) for all tokens alike where there is none.
        if rotary == "none":
            # cos 1 and sin 0 leave queries and keys unrotated.
            shape = (1, 1, head_dim(self._config))
            return torch.ones(shape), torch.zeros(shape)
        rotate = self._family.build_rotary(self._config, self._index)
        sizes = token_grid if rotary == "3d" else [math.prod(token_grid)]
        axes = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        rotations = [rotate(torch.zeros(1), axis.reshape(1, -1)) for axis in axes]
        # Each frequency turns by the position along one axis; the axes take turns from fast to slow frequencies, so
        # that all of them have near and far ones. The second half of the channels repeats the first.
        half = rotations[0][0].shape[-1] // 2
        axis_of = (torch.arange(half) % len(axes)).repeat(2)[None, None]
        cos, sin = (
            sum(torch.where(axis_of == axis, rotation[part], 0.0) for axis, rotation in enumerate(rotations))
            for part in (0, 1)
        )
        return torch.as_tensor(cos), torch.as_tensor(sin)


def merge_lora(network: nn.Module) -> Callable[[], None] | None:
    """Add LoRA's BA to the frozen weights and take its modules out, for prediction.

    The sum is made in float32 and rounded to the frozen weights' type once.

    Returns:
        What puts everything back as it was; None where the network has no LoRA.
    """
    originals: list[tuple[str, Any, Tensor]] = []
    for path, module in list(network.named_modules()):
        if isinstance(module, lora.Linear):
            base = cast(nn.Linear, module.get_base_layer())
            originals.append((path, module, base.weight))
            merged = (base.weight.float() + module.get_delta_weight(_ADAPTER).detach()).to(base.weight.dtype)
            base.weight = nn.Parameter(merged, requires_grad=False)
            network.set_submodule(path, base)

    def undo() -> None:
        for path, module, weight in originals:
            module.get_base_layer().weight = weight
            network.set_submodule(path, module)

    return undo if originals else None
