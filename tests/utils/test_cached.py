"""Constants that are kept do not remember a trace."""

import torch
from torch import nn

from polyspace.utils.misc import cached


def test_what_is_kept_is_made_once():
    made = []
    ones = cached(lambda n: made.append(n) or torch.ones(n))
    assert ones(3) is ones(3) and ones(2).shape == (2,) and made == [3, 2]


def test_exporting_twice_and_computing_between_is_as_if_nothing_was_kept():
    @cached
    def steps(count: int) -> torch.Tensor:
        with torch.inference_mode(False), torch.device("cpu"):
            return torch.arange(count).float()

    class Model(nn.Module):
        def forward(self, x):
            return x + steps(x.shape[1])

    x = torch.randn(2, 3)
    for _ in range(2):
        program = torch.export.export(Model(), (x,)).module()
        assert type(steps(3)) is torch.Tensor
        assert torch.equal(program(x), Model()(x)) and torch.equal(program(x), x + torch.arange(3.0))
