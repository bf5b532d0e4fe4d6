import pytest
import torch

from polyspace.utils.moments import Moments
from polyspace.utils.standardise import even_rotation, fit_standardiser, hadamard


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 64, 96, 384, 768, 1024, 1280, 1408])
def test_hadamard_matrices_are_signs_with_orthogonal_rows(order):
    h = hadamard(order)
    assert set(h.unique().tolist()) <= {-1.0, 1.0} and h.shape == (order, order)
    assert torch.equal(h @ h.T, order * torch.eye(order, dtype=h.dtype))


@pytest.mark.parametrize("order", [3, 6, 10, 50, 92])
def test_orders_without_a_known_construction_give_none(order):
    assert hadamard(order) is None


def skewed(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64) * torch.logspace(1, -2, d) @ torch.randn(d, d).double() + 4


@pytest.mark.parametrize("d", [8, 10, 12, 50])  # 10 and 50 have no Hadamard matrix
def test_phi_s_gives_every_dimension_unit_variance_and_keeps_shapes(d):
    y = skewed(200, d)
    m = Moments().update(y, y)
    z = fit_standardiser(m.mean_y(), m.cov_yy(), "phi_s")(y)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(d, dtype=z.dtype))
    before, after = torch.pdist(y), torch.pdist(z)
    torch.testing.assert_close(before / after, (before / after)[:1].expand_as(after))  # one scale for all distances


@pytest.mark.parametrize("kind", ["none", "per_dim", "phi_s"])
def test_what_goes_in_comes_back(kind):
    y = skewed(40, 12)
    m = Moments().update(y, y)
    s = fit_standardiser(m.mean_y(), m.cov_yy(), kind)
    torch.testing.assert_close(s.inverse(s(y)), y)
    torch.testing.assert_close(s(y).mean(0), torch.zeros(12, dtype=y.dtype), atol=1e-9, rtol=0)


def test_per_dim_divides_by_each_standard_deviation_down_to_a_floor():
    y = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([5.0, 0.2, 1e-9])
    m = Moments().update(y, y)
    z = fit_standardiser(m.mean_y(), m.cov_yy(), "per_dim")(y)
    torch.testing.assert_close(z[:, :2].std(0, correction=0), torch.ones(2, dtype=z.dtype))
    assert z[:, 2].abs().max() < 1e-4  # what hardly varies is not blown up to noise of unit size


def test_a_constant_space_is_only_centred():
    y = torch.full((5, 4), 3.0, dtype=torch.float64)
    m = Moments().update(y, y)
    for kind in ("per_dim", "phi_s"):
        assert torch.equal(fit_standardiser(m.mean_y(), m.cov_yy(), kind)(y), torch.zeros(5, 4, dtype=y.dtype))


def test_an_even_rotation_levels_any_spectrum():
    for values in (torch.tensor([5.0, 0, 0, 0, 0, 1]), torch.rand(31), torch.ones(4)):
        r = even_rotation(values.double())
        torch.testing.assert_close(r @ r.T, torch.eye(len(values), dtype=r.dtype))
        level = (r @ values.double().diag() @ r.T).diagonal()
        torch.testing.assert_close(level, values.double().mean().expand_as(level))
