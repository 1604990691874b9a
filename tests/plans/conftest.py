"""Plans of a small dataset."""

import pytest

from llmreg.devices import Machine
from llmreg.networks.llm_morph.plugin import LLMMorphSettings
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.sizes import Budget, plan_configuration


@pytest.fixture
def plans() -> Plans:
    budget = Budget(Machine("cpu", 16, 2, False))
    full, half = (plan_configuration((80, 96, 80), factor, LLMMorphSettings(), budget) for factor in (1, 2))
    return Plans.model_validate(
        {
            "dataset_name": "Dataset001_X",
            "plans_name": "default",
            "spacing": (2, 2, 2),
            "size": (80, 96, 80),
            "centre": (0, 0, 0),
            "fixed_modality": 0,
            "moving_modality": 1,
            "labels": {1: "liver"},
            "normalization": {0: {"modality": "MR", "scheme": "percentiles", "lower": 0, "upper": 95}},
            "prealignment": {"method": "affine", "reference_case": "X_0001_0000"},
            "configurations": {"full": full, "half": half},
            "default_configuration": "half",
            "reasons": {},
        }
    )
