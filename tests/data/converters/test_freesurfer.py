from llmreg.data.converters.freesurfer import structure_name


def test_names_are_those_of_freesurfers_table() -> None:
    assert structure_name(17) == "Left-Hippocampus"
    assert structure_name(53) == "Right-Hippocampus"
    assert structure_name(16) == "Brain-Stem"
    # The right side's ids are the left side's plus 36 to 41, so each name has a partner.
    assert structure_name(2).removeprefix("Left-") == structure_name(41).removeprefix("Right-")
    assert structure_name(28).removeprefix("Left-") == structure_name(60).removeprefix("Right-")


def test_another_structure_is_called_by_its_id() -> None:
    assert structure_name(77) == "FreeSurfer-77"
