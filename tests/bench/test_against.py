"""The comparison with other models: inputs that the benchmark computes for them."""

import torch
from benchmarks.against.other_models import triplets


def test_triplets_are_all_pairs_of_edges_that_follow_each_other() -> None:
    """Atom 5 receives nothing, atom 4 sends nothing; some edges have a reverse edge, others not."""
    receiver = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4])
    sender = torch.tensor([1, 2, 5, 0, 2, 0, 1, 2, 3])
    edges = list(enumerate(zip(sender.tolist(), receiver.tolist(), strict=True)))
    expected = {(i, j, k, first, second) for second, (j, i) in edges for first, (k, to) in edges if to == j and k != i}
    i, j, *rows = triplets(sender, receiver)
    assert torch.equal(i, receiver)
    assert torch.equal(j, sender)
    found = list(zip(*(row.tolist() for row in rows), strict=True))
    assert len(found) == len(expected) == len(set(found))
    assert set(found) == expected
