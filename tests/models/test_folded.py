"""The converter that conversions of whole indexes use."""

import pytest
import torch

from polyspace.models.spaces.converters import LinearConverter, ResidualMLP
from polyspace.models.spaces.folded import FoldedConverter
from polyspace.utils.standardise import Standardiser

D, H, E = 7, 11, 5


def _mlp(seed=0):
    torch.manual_seed(seed)
    back = torch.randn(E, E)
    made = ResidualMLP(
        LinearConverter(torch.randn(D, E), torch.randn(E)), H, torch.randn(D), torch.rand(D) + 0.1,
        Standardiser(torch.zeros(E), back, back),
    )  # fmt: skip
    for parameter in made.mlp[2].parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_a_linear_converter_is_computed_bit_for_bit():
    torch.manual_seed(0)
    converter, x, out = LinearConverter(torch.randn(D, E), torch.randn(E)), torch.randn(33, D), torch.empty(33, E)
    FoldedConverter(converter).into(x, out)
    assert torch.equal(out, converter(x))


@pytest.mark.parametrize("seed", range(3))
def test_a_network_is_computed_up_to_rounding(seed):
    converter, x, out = _mlp(seed), 3 * torch.randn(33, D), torch.empty(33, E)
    FoldedConverter(converter).into(x, out)
    with torch.no_grad():
        exact = converter.double()(x.double())
        theirs = (converter.float()(x) - exact).abs().max()
    assert (out - exact).abs().max() <= 4 * theirs + 1e-6 * exact.abs().max()
    assert not torch.allclose(out, converter.linear(x))
