import pytest
import torch
from small_hnet import GRID, T, U, clips

from polyspace.models.hnet import column_resnet
from polyspace.models.hnet.column_resnet import CausalConv3d, ColumnResNet, ResidualUnit
from polyspace.models.hnet.encoder import cell_coords


def test_coordinates_count_time_row_column():
    assert cell_coords(torch.tensor([[0, 5, 17 + 16]]), GRID).tolist() == [[[0, 0, 0], [0, 1, 1], [2, 0, 1]]]


@pytest.mark.parametrize(
    ("side", "stride", "spatial", "frames"), [(4, 1, 3, 3), (8, 2, 3, 1), (2, 2, 3, 3), (1, 1, 1, 3)]
)
def test_the_matrix_of_a_convolution_is_the_convolution(side, stride, spatial, frames, monkeypatch):
    conv, x = (
        CausalConv3d(3, 5, stride, spatial, frames).double(),
        torch.randn(2, 4, side, side, 3, dtype=torch.float64),
    )
    by_matrix = conv(x)
    monkeypatch.setattr(column_resnet, "MATRIX_VALUES", 0)
    assert torch.allclose(conv(x), by_matrix)


@pytest.mark.parametrize("factored", [False, True])
def test_a_column_sees_its_past_only_and_stands_still_when_its_pixels_do(factored):
    stem, video = ColumnResNet(16, U, 2, 4, factored=factored), clips(1)
    later = video.clone()
    later[:, 4:] += 1
    assert torch.equal(stem(later).x[:, :32], stem(video).x[:, :32])
    still = stem(video[:, :1].expand(-1, T, -1, -1, -1)).x.view(1, 3, 16, 16)
    assert torch.allclose(still[:, 0], still[:, 2], atol=1e-6)


def test_factored_convolutions_have_three_taps_in_space_and_time_and_less_to_multiply():
    whole, factored = (ResidualUnit(8, 8, 1, 3, f) for f in (False, True))
    video = torch.zeros(1, 7, 5, 5, 8, requires_grad=True)
    factored(video)[0, 3, 2, 2].sum().backward()
    seen = video.grad.abs().sum((0, 4)).nonzero()
    assert seen[:, 0].unique().tolist() == [0, 1, 2, 3]  # two convolutions of three taps, causal: 3 and 4 behind it
    assert sum(p.numel() for p in factored.parameters()) < 0.6 * sum(p.numel() for p in whole.parameters())
