import math

import pytest
import torch
from typecheck import unchecked

from polyspace.losses.auxiliaries import boundary_loss, entropy_loss, ratio_loss
from polyspace.losses.energy import aligned_energy_loss, energy, energy_loss, global_mean


def test_energies_by_hand():
    x, y = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert energy(x, y).item() == pytest.approx(1.5)
    assert energy(x, y, "l2").item() == pytest.approx(2.5)
    assert energy(x, y, "smooth_l1").item() == pytest.approx((0.5 + 1.5) / 2)
    assert energy(x, y, "cosine").item() == pytest.approx(1 - 3 / math.sqrt(10))


def test_weights_choose_and_ignored_items_may_be_nan():
    x = torch.tensor([[[1.0], [float("nan")], [5.0]]], requires_grad=True)
    y = torch.zeros(1, 3, 1)
    loss = energy_loss(x, y, torch.tensor([[1.0, 0.0, 3.0]]))
    assert loss.item() == pytest.approx((1 + 15) / 4)
    assert energy_loss(x, y, torch.zeros(1, 3)).item() == 0


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "l2", "cosine"])
def test_ignored_items_give_no_gradient_were_they_nan(kind):
    x, y = torch.randn(1, 3, 2), torch.randn(1, 3, 2)
    x[0, 1] = y[0, 2] = float("nan")
    x.requires_grad_()
    energy_loss(x, y, torch.tensor([[1.0, 0.0, 0.0]]), kind).backward()
    assert x.grad[0, 0].abs().sum() > 0 and not x.grad[0, 1:].any()


def test_no_gradient_goes_into_the_target():
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    energy_loss(x, y).backward()
    assert y.grad is None and x.grad.abs().sum() > 0


def test_half_precision_is_widened():
    assert energy_loss(torch.ones(2, 3).bfloat16(), torch.zeros(2, 3).bfloat16()).dtype == torch.float32
    assert energy_loss(torch.ones(2, 3).double(), torch.zeros(2, 3).double()).dtype == torch.float64


def test_an_unknown_energy_is_refused():
    with pytest.raises(ValueError, match="unknown energy 'l7'"):
        unchecked(energy)(torch.ones(1, 2), torch.ones(1, 2), "l7")


def test_aligned_energy_is_the_pairs_alone_once_negatives_are_far():
    a = torch.eye(4)
    assert aligned_energy_loss(a, a).item() == pytest.approx(0)
    wrong = aligned_energy_loss(a, a.roll(1, 0))
    assert wrong.item() == pytest.approx(1 + (4 * 1.5 + 8 * 0.5) / 12)
    assert aligned_energy_loss(a[:1], a[1:2]).item() == pytest.approx(1)


def test_ratio_loss_is_one_at_its_target_and_turns_there():
    ratio, valid = 4.0, torch.ones(8, dtype=torch.bool)
    at = torch.tensor([True, True] + [False] * 6)
    prob = torch.full((8,), 0.25, requires_grad=True)
    assert ratio_loss(at, prob, valid, ratio).item() == pytest.approx(1)
    more = torch.tensor([True] * 4 + [False] * 4)
    ratio_loss(more, prob, valid, ratio).backward()
    assert (prob.grad > 0).all()
    prob.grad = None
    ratio_loss(~valid, prob, valid, ratio).backward()
    assert (prob.grad < 0).all()


def test_ratio_loss_counts_valid_cells_only():
    b, p = torch.tensor([True, False, True]), torch.tensor([0.9, 0.2, 0.8])
    valid = torch.tensor([True, True, False])
    assert ratio_loss(b, p, valid, 2.0).item() == pytest.approx(2 * (0.5 * 0.55 + 0.5 * 0.45))
    with pytest.raises(ValueError, match="above 1"):
        ratio_loss(b, p, valid, 1.0)


def test_entropy_is_zero_for_sure_rows_and_log_k_for_even_ones():
    rows = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]])
    valid = torch.tensor([[True, True, False]])
    assert entropy_loss(rows, valid).item() == pytest.approx(math.log(2) / 2)


def test_boundary_loss_is_one_for_coins_and_zero_for_the_sure():
    valid = torch.ones(2, dtype=torch.bool)
    assert boundary_loss(torch.tensor([0.5, 0.5]), valid).item() == pytest.approx(1)
    assert boundary_loss(torch.tensor([0.0, 1.0]), valid).item() == 0


def test_the_global_mean_weighs_and_ignores_what_has_no_weight():
    x = torch.tensor([1.0, float("nan"), 4.0], requires_grad=True)
    mean = global_mean(x, torch.tensor([1.0, 0.0, 2.0]))
    mean.backward()
    assert mean.item() == pytest.approx(3) and x.grad.tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert global_mean(x.detach(), torch.zeros(3)) == 0 and global_mean(torch.tensor([1.0, 3.0])) == 2
