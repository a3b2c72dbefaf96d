"""The names of parts: in tensors, in files, and back, also where a branch is called like something else."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.model.parts import (
    ENCODER,
    branch_of,
    branch_of_file,
    branch_of_part,
    by_part,
    file_of_part,
    of_branches,
    part_of,
    part_of_branch,
    parts_of,
    split_name,
    whole_names,
)

NAMES = st.sampled_from(["mptrj", "encoder", "branches", "training", "a-b_c", "Größe"])
TENSORS = st.sampled_from(["norm.weight", "energy.layers.0.bias", "branches.weight", "encoder.x"])


@given(branch=NAMES, tensor=TENSORS)
def test_names_go_there_and_back(branch: str, tensor: str) -> None:
    part = part_of_branch(branch)
    assert branch_of_part(part) == branch
    assert split_name(f"{part}.{tensor}") == (part, tensor)
    assert branch_of(f"{part}.{tensor}") == branch
    assert branch_of_file(file_of_part(part)) == branch
    assert file_of_part(part) == f"branches/{branch}.safetensors"
    assert split_name(f"{ENCODER}.{tensor}") == (ENCODER, tensor)
    assert branch_of(f"{ENCODER}.{tensor}") is branch_of_part(ENCODER) is branch_of_file("encoder.safetensors") is None
    assert part_of(f"{ENCODER}.{tensor}") == ENCODER


def test_tensors_are_sorted_into_their_parts() -> None:
    tensors = {"encoder.a.b": 1, "branches.x.a": 2, "branches.encoder.a": 3, "branches.x.c.d": 4}
    found = by_part(tensors)
    assert found == {"encoder": {"a.b": 1}, "branches.x": {"a": 2, "c.d": 4}, "branches.encoder": {"a": 3}}
    assert {name: t for part, group in found.items() for name, t in whole_names(part, group).items()} == tensors
    assert of_branches(tensors, ["encoder"]) == {"branches.encoder.a": 3}
    assert parts_of(["x", "y"]) == ("encoder", "branches.x", "branches.y")
