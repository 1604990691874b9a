"""Windows follow the structures; other contrasts are ranked."""

from __future__ import annotations

import pytest
from simulated_studies import BONE, BRAIN, KIDNEY, LIVER, LUNG, VENTRICLE, ct, seen

from llmreg.preprocessing.planning.windows import plan_window


def test_a_window_follows_the_structures() -> None:
    def window(*structures: tuple[float, ...], cases: int = 3) -> tuple[float, float]:
        found, reason = plan_window([ct(structures=structures) for _ in range(cases)], "CT venous")
        assert found.scheme == "window"
        assert f"{found.lower:g} to {found.upper:g} HU" in reason
        return found.lower, found.upper

    assert window(LIVER, KIDNEY) == (-180, 400)
    assert window() == (-180, 400)  # Lungs and bones of bodies do not count.
    low, high = window(BONE, LIVER)
    assert low == -180
    assert 1000 < high <= 1200
    low, high = window(LUNG, LIVER)
    assert -940 <= low < -700
    assert high == 400
    low, high = window(BRAIN, VENTRICLE)
    assert low < 2
    assert high > 45
    assert high - low < 200
    # Of structures that are all alike, too, something is seen.
    low, high = window((40.1, 40.1, 40.2, 40.3, 40.3))
    assert low < high
    # A single image does not decide.
    odd = [ct(structures=(BRAIN,)) for _ in range(30)] + [ct(structures=(BONE,))]
    assert plan_window(odd, "CT")[0].upper < 100


@pytest.mark.parametrize("name", ["CT", "MR", "PET"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.002, 0.99)])
def test_images_that_are_normalised_already_stay_as_they_are(name: str, low: float, high: float) -> None:
    found, reason = plan_window([seen(range=[low, high]), seen(range=[low, high])], name)
    assert (found.scheme, found.lower, found.upper) == ("window", round(low), round(high))
    assert "already" in reason


@pytest.mark.parametrize("ranges", [[[0.0, 0.3], [0.0, 1.0]], [[0.0, 1.0], [0.0, 40.0]], [[-0.4, 0.9]]])
def test_small_numbers_are_not_taken_to_be_normalised(ranges: list[list[float]]) -> None:
    found, _ = plan_window([seen(range=r) for r in ranges], "PET")
    assert (found.scheme, found.lower, found.upper) == ("percentiles", 0.5, 99.5)


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [("MR T1", 0, 95), ("FLAIR", 0, 95), ("PET", 0.5, 99.5), ("ultrasound", 0.5, 99.5), ("unheard of", 0.5, 99.5)],
)
def test_other_contrasts_are_ranked(name: str, lower: float, upper: float) -> None:
    found, reason = plan_window([seen(), seen()], name)
    assert (found.modality, found.scheme, found.lower, found.upper) == (name, "percentiles", lower, upper)
    assert ("safe default" in reason) == (lower > 0)


@pytest.mark.parametrize("values", [[0.0, 4095.0], [3.0, 255.0], [-20.0, 60.0]])
def test_ct_without_hounsfield_units_is_ranked(values: list[float]) -> None:
    found, reason = plan_window([ct(structures=(BRAIN,), range=values)], "CT")
    assert (found.scheme, found.lower, found.upper) == ("percentiles", 0.5, 99.5)
    assert "Hounsfield" in reason
