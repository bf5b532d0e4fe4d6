import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from polyspace.models.hnet.regions import APART, components, side_edges


@pytest.mark.parametrize("links", [0, 5, 20, 60])
def test_components_are_those_of_scipy(links):
    a, b = torch.randint(0, 40, (2, 3, 80))
    on = torch.arange(80).expand(3, -1) < links
    ours = components(a, b, on, 40)
    for row in range(3):
        graph = coo_matrix((torch.ones(links), (a[row, :links], b[row, :links])), shape=(40, 40))
        theirs = torch.from_numpy(connected_components(graph, directed=False)[1])
        same = ours[row][:, None] == ours[row][None]
        assert torch.equal(same, theirs[:, None] == theirs[None])
        assert (ours[row] <= torch.arange(40)).all()


def test_a_long_chain_is_one_part():
    order = torch.randperm(500)
    assert components(order[None, :-1], order[None, 1:], torch.ones(1, 499, dtype=torch.bool), 500).max() == 0


def test_likeness_is_the_mean_over_shared_steps_and_short_overlaps_are_apart():
    """Runs 0 and 1 share three of three steps, 1 and 2 one of three."""
    first, second = torch.tensor([[0, 0, 1, 0, 0]]), torch.tensor([[1, 1, 2, 1, 2]])
    alike, there = torch.tensor([[0.9, 0.6, 0.8, 0.3, 0.7]]), torch.tensor([[True, True, True, True, False]])
    edges = side_edges(first, second, alike, there, torch.tensor([[3, 3, 1]]), 0.5)
    rows = zip(*(x[0].tolist() for x in (edges.a, edges.b, edges.there, edges.alike)), strict=True)
    assert {(a, b): s for a, b, real, s in rows if real} == {(0, 1): pytest.approx(0.6), (1, 2): APART}
