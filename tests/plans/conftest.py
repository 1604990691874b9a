"""Plans of a small dataset."""

import pytest
from tiny_plans import make_plans

from llmreg.devices import Machine
from llmreg.networks.llm_morph.plugin import LLMMorphSettings
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.sizes import Budget, plan_configuration


@pytest.fixture
def plans() -> Plans:
    budget = Budget(Machine("cpu", 16, 2, False))
    full, half = (plan_configuration((80, 96, 80), factor, LLMMorphSettings(), budget) for factor in (1, 2))
    return make_plans(
        (80, 96, 80),
        dataset_name="Dataset001_X",
        prealignment={"method": "affine", "reference_case": "Tiny_0001_0000"},
        configurations={"full": full, "half": half},
        default_configuration="half",
    )
