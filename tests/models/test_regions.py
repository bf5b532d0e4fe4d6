import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from polyspace.models.hnet.regions import LAST, Edges, components, join, side_edges


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


def complete(n: int) -> tuple[Edges, torch.Tensor]:
    alike = torch.rand(n, n)
    alike = (alike + alike.T) / 2
    a, b = torch.triu_indices(n, n, 1)
    return Edges(a[None], b[None], alike[a, b][None]), alike


@pytest.mark.parametrize("budget", [1, 2, 5, 11, 12])
def test_a_budget_cuts_single_linkage_where_it_should(budget):
    edges, alike = complete(12)
    label = join(edges, torch.tensor([12]), 12, 0.9, budget, budget)[0]
    distance = squareform((1 - alike).fill_diagonal_(0).numpy(), checks=False)
    theirs = torch.from_numpy(fcluster(linkage(distance, "single"), budget, "maxclust"))
    assert torch.equal(label[:, None] == label[None], theirs[:, None] == theirs[None])
    assert len(label.unique()) == budget


def test_without_a_budget_the_threshold_decides_and_only_too_many_are_joined_further():
    edges, _ = complete(12)
    natural = join(edges, torch.tensor([12]), 12, 0.8, None, None)[0]
    one = components(edges.a, edges.b, edges.alike > 0.8, 12)[0]
    assert torch.equal(natural, one)
    count = len(natural.unique())
    assert torch.equal(join(edges, torch.tensor([12]), 12, 0.8, None, count)[0], natural)
    assert len(join(edges, torch.tensor([12]), 12, 0.8, None, count - 1)[0].unique()) == count - 1


def test_likeness_is_the_mean_over_shared_steps_and_short_overlaps_join_last():
    """Runs 0 and 1 share three of three steps, 1 and 2 one of three."""
    first, second = torch.tensor([[0, 0, 1, 0, 0]]), torch.tensor([[1, 1, 2, 1, 2]])
    alike, there = torch.tensor([[0.9, 0.6, 0.8, 0.3, 0.7]]), torch.tensor([[True, True, True, True, False]])
    edges = side_edges(first, second, alike, there, torch.tensor([[3, 3, 1]]), 0.5)
    found = {
        (a, b): s for a, b, s in zip(*(x[0].tolist() for x in (edges.a, edges.b, edges.alike)), strict=True) if s > -9
    }
    assert found == {(0, 1): pytest.approx(0.6), (1, 2): pytest.approx(0.8 - LAST)}
    assert join(edges, torch.tensor([3]), 3, 0.5, None, None).tolist() == [[0, 0, 2]]
    assert join(edges, torch.tensor([3]), 3, 0.5, None, 1).tolist() == [[0, 0, 0]]
