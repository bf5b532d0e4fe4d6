"""Encoders through torch.export: the same numbers as eager, on clips of any kind."""

import pytest
import torch

from polyspace.models.hnet.exportable import ExportableEncoder
from polyspace.models.vjepa.vit import HNetViT, TubeletViT

VIDEO = (6, 24, 24, 3)  # 3 × 6 × 6 cells of 2 × 4 × 4


def hnet(**changes):
    torch.manual_seed(0)
    shape = dict(dim=24, depth=2, heads=2, unit=4, conv_width=2, conv_blocks=(1,), cell_depth=1, groups=2)
    return HNetViT(**(shape | changes)).eval()


def kinds():
    """Noise, a still clip, a clip that changes in one corner, all noise again."""
    torch.manual_seed(1)
    video = torch.randn(4, *VIDEO)
    video[1] = video[1, :1]
    video[2] = video[2, :1]
    video[2, 3:, :8, :8] += 1
    return video


@pytest.mark.parametrize(
    "changes", [{}, {"soft": False}, {"cell_dim": 16, "size_bias": True}, {"positions": "centroid"}]
)
@pytest.mark.parametrize("budget", [7, 40, 500])
def test_the_exportable_form_is_the_encoder_with_that_budget(changes, budget):
    model, video = hnet(**changes), kinds()
    tokens, valid, clip = ExportableEncoder(model, budget)(video)
    truth = model.encode(video, num_chunks=budget)
    assert torch.equal(valid.sum(1), truth.valid.sum(1)) and tokens.shape[1] == budget
    assert torch.allclose(clip, truth.pooled(), atol=1e-5)
    for b, n in enumerate(valid.sum(1).tolist()):
        assert torch.allclose(tokens[b, :n], truth.tokens[b, :n], atol=1e-5)
        assert not tokens[b, n:].any()


@pytest.mark.parametrize("sparse_from", [1600, 1])
def test_an_exported_program_answers_as_the_encoder_does(sparse_from):
    model, video = hnet(), kinds()
    for block in model.routing.blocks:
        block.attention.sparse_from = sparse_from  # of grids that large cells attend sparsely
    batch = ({0: torch.export.Dim("batch", max=64)},)
    program = torch.export.export(ExportableEncoder(model, 12), (video,), dynamic_shapes=batch)
    other = kinds().flip(0)[:3]  # another number of clips
    made = program.module()(other)
    truth = ExportableEncoder(model, 12)(other)
    assert all(torch.allclose(a, b.to(a.dtype), atol=1e-6) for a, b in zip(made, truth, strict=True))


def test_tubelets_and_fixed_blocks_export_too():
    torch.manual_seed(0)
    tubelet, video = TubeletViT(24, 1, 2, unit=4).eval(), kinds()
    for model in (ExportableEncoder(tubelet), ExportableEncoder(hnet(fixed=(1, 2, 2)), 27)):
        made = torch.export.export(model, (video,)).module()(video)
        assert all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(made, model(video), strict=True))


def test_what_can_not_be_exported_says_so():
    with pytest.raises(ValueError, match="budget of tokens"):
        ExportableEncoder(hnet())
    with pytest.raises(ValueError, match="learned score"):
        ExportableEncoder(hnet(learned_selection=True), 8)
