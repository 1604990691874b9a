"""Plans with the paper's settings."""

from __future__ import annotations

from llmreg.data.modalities import is_ct
from llmreg.networks.registry import plugin_of
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.windows import PAPER_HU


def paper_plans(plans: Plans) -> Plans:
    """Change plans to the paper's settings.

    These are Dice + 0.1 L2, a learning rate of 1e-4, no pre-alignment, the paper's windows, and 50 epochs of 1,620
    pairs. Settings that the paper leaves open (normalisation of the convolutions, attention, rotary embedding) stay.
    """
    content = plans.model_dump()
    for modality in content["normalization"].values():
        if modality["scheme"] == "window" and is_ct(modality["modality"]) and modality["lower"] < -1:
            modality["lower"], modality["upper"] = PAPER_HU
    content["plans_name"] = "paper"
    # Images on different grids need at least a common centre to lie in the frame at all.
    aligned = plans.prealignment.aligned_grid is not None
    content["prealignment"]["method"] = "identity" if aligned else "centre"
    content["network"] = plugin_of(plans.network).as_published(plans.network)
    content["loss"] |= {"dice": 1.0, "similarity": 0.0, "smoothness": 0.1}
    content["training"] |= {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "clip_gradient": None,
        "epochs": 50,
        "steps_per_epoch": 1620,
    }
    content["augmentation"] |= {"mirror_axes": (), "spatial_probability": 0.0, "intensity_probability": 0.0}
    content["reasons"]["paper"] = (
        "The paper's settings (Implementing Details); its abdomen has 1,620 pairs and 50 epochs, its brain 300 epochs. "
        + ("" if aligned else "Unlike in the paper, cases are centred, since they have different grids.")
    ).strip()
    return Plans.model_validate(content)
