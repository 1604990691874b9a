"""One frozen pretrained decoder layer, run on tokens of images instead of text."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from llmreg.networks.language_models.families import check_runnable, head_dim, split_fused
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.language_models.settings import LLMSettings, LoRASettings

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

    cos: Tensor
    sin: Tensor

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
            _inject_lora(layer, settings.lora)
        self.layer = layer
        self._dtype = next(p.dtype for p in layer.parameters() if not p.requires_grad)
        cos, sin = self._angles(settings.rotary, token_grid)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # Not used any more, but every checkpoint of version 0.1 holds it.
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H) float32, computed in the frozen weights' type."""
        # Autocast would copy the frozen weights to its own type at every call.
        with torch.autocast(tokens.device.type, enabled=False):
            hidden = tokens.to(self._dtype)
            angles = {"position_embeddings": (self.cos.to(hidden.dtype), self.sin.to(hidden.dtype))}
            options = angles if self._family.rotary else {}
            return cast(Tensor, self.layer(hidden, attention_mask=self._mask(hidden), **options).float())

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Switch the mode; the frozen layer stays in evaluation mode."""
        super().train(mode)
        self.layer.eval()
        return self

    def _mask(self, hidden: Tensor) -> Tensor | None:
        if not self._causal:
            return None
        types = getattr(self._config, "layer_types", None)
        window = getattr(self._config, "sliding_window", None)
        sliding = window is not None if types is None else types[self._index] == "sliding_attention"
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
        d, h, w = token_grid
        like = torch.zeros(1)
        if rotary == "1d":
            return rotate(like, torch.arange(d * h * w)[None])
        axes = torch.meshgrid(torch.arange(d), torch.arange(h), torch.arange(w), indexing="ij")
        rotations = [rotate(like, axis.reshape(1, -1)) for axis in axes]
        # Each frequency turns by the position along one axis; the axes take turns from fast to slow frequencies, so
        # that all three have near and far ones. The second half of the channels repeats the first.
        half = rotations[0][0].shape[-1] // 2
        axis_of = (torch.arange(half) % 3).repeat(2)[None, None]
        cos, sin = (
            sum(torch.where(axis_of == axis, rotations[axis][part], 0.0) for axis in range(3)) for part in (0, 1)
        )
        return torch.as_tensor(cos), torch.as_tensor(sin)


def _inject_lora(layer: nn.Module, settings: LoRASettings) -> None:
    # LoRA (peft) lies on the projections, in float32; the rest of the layer stays frozen.
    inject_adapter_in_model(
        LoraConfig(r=settings.r, lora_alpha=settings.alpha, target_modules=list(settings.targets)), layer, _ADAPTER
    )
    for name, parameter in layer.named_parameters():
        trainable = "lora_" in name
        parameter.requires_grad_(trainable)
        if trainable:
            parameter.data = parameter.data.float()


def merge_lora(network: nn.Module) -> Callable[[], None] | None:
    """Add LoRA's BA to the frozen weights and take its modules out, for prediction.

    The sum is made in float32 and rounded to the frozen weights' type once.

    Returns:
        What puts everything back as it was; None where the network has no LoRA.
    """
    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, lora.Linear)]
    if not adapted:
        return None
    originals: list[tuple[nn.Module, str, Any, Tensor]] = []
    for path, module in adapted:
        parent_path, _, name = path.rpartition(".")
        parent, base = network.get_submodule(parent_path), cast(nn.Linear, module.get_base_layer())
        originals.append((parent, name, module, base.weight))
        with torch.no_grad():
            merged = (base.weight.float() + module.get_delta_weight(_ADAPTER)).to(base.weight.dtype)
        base.weight = nn.Parameter(merged, requires_grad=False)
        setattr(parent, name, base)

    def undo() -> None:
        for parent, name, module, weight in originals:
            module.get_base_layer().weight = weight
            setattr(parent, name, module)

    return undo
