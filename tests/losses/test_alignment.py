import pytest
import torch

from polyspace.losses import cosine_loss, l2_loss, smooth_l1_loss


def test_hand_worked_distances():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    assert l2_loss(x, y).item() == pytest.approx((0 + 9 + 1 + 4) / 4)
    assert smooth_l1_loss(x, y).item() == pytest.approx((0 + 2.5 + 0.5 + 1.5) / 4)
    assert cosine_loss(x, y).item() == pytest.approx((1 - 13 / (5 * 10**0.5) + 1) / 2)


def test_cosine_sees_directions_only():
    x = torch.randn(5, 7)
    assert cosine_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(x, -x).item() == pytest.approx(2, abs=1e-6)


def test_half_precision_is_summed_in_float32_and_double_stays():
    x = torch.randn(4, 8)
    for loss in (l2_loss, smooth_l1_loss, cosine_loss):
        assert loss(x.bfloat16(), x.bfloat16() + 1).dtype == torch.float32
        assert loss(x.double(), x.double() + 1).dtype == torch.float64
