"""LLM-Morph in the registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from llmreg.networks.language_models.settings import LLMSettings
from llmreg.networks.llm_morph.ablations import ABLATIONS, ablation
from llmreg.networks.llm_morph.costs import STRIDE, llm_size, step_cost
from llmreg.networks.llm_morph.settings import LLMMorphSettings
from llmreg.networks.registry import NetworkPlugin, StepCost, StepSize, Variant, register
from llmreg.paths import llm_cache_folder

if TYPE_CHECKING:
    import torch

    from llmreg.networks.registration_network import RegistrationNetwork


class LLMMorphPlugin(NetworkPlugin[LLMMorphSettings]):
    """LLM-Morph with all kinds of encoding blocks."""

    name = "llm_morph"
    title = "LLM-Morph"
    summary = "LLM-Morph, around layers of a language model"
    settings_type = LLMMorphSettings
    size_setting = "width"
    sizes = (16, 12, 8)
    ablations = ABLATIONS

    @override
    def build(self, settings: LLMMorphSettings, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        from llmreg.networks.language_models.loading import load_layers
        from llmreg.networks.llm_morph.network import LLMMorph

        llm = self.language_model(settings)
        return LLMMorph(settings, shape, None if llm is None else load_layers(llm, llm_cache_folder(), device))

    @override
    def step_cost(self, settings: LLMMorphSettings, size: StepSize) -> StepCost:
        return step_cost(settings, size)

    @override
    def default_settings(self) -> LLMMorphSettings:
        # The paper's network, but for cost volumes, with which it learns faster.
        return LLMMorphSettings(cost_volume=1)

    @override
    def as_published(self, settings: LLMMorphSettings) -> LLMMorphSettings:
        return settings.model_copy(update={"cost_volume": 0})

    @override
    def stride(self, settings: LLMMorphSettings) -> int:
        return STRIDE

    @override
    def token_grid(self, settings: LLMMorphSettings, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(size // STRIDE for size in shape)

    @override
    def language_model(self, settings: LLMMorphSettings) -> LLMSettings | None:
        return settings.llm if settings.blocks == "llm" else None

    @override
    def fetch_weights(self, settings: LLMMorphSettings) -> LLMMorphSettings:
        if self.language_model(settings) is None:
            return settings
        from llmreg.networks.language_models.fetching import fetch

        return settings.model_copy(update={"llm": fetch(settings.llm, llm_cache_folder())})

    @override
    def with_language_model(
        self, settings: LLMMorphSettings, source: str | None, layers: Sequence[str] | None
    ) -> LLMMorphSettings:
        from llmreg.networks.language_models.fetching import fetch, select_layers

        fetched = fetch(select_layers(source, layers, settings.llm), llm_cache_folder())
        # What takes the layers' place in ablations has their width.
        return settings.model_copy(update={"llm": fetched, "token_width": llm_size(fetched).hidden})

    @override
    def ablation(self, settings: LLMMorphSettings, name: str) -> Variant:
        return ablation(settings, name)


register(LLMMorphPlugin())
