"""Maps of chunks say what the encoder did."""

import numpy as np
import pytest
import torch
from small_hnet import clips, encoder, hide

from polyspace.models.vjepa.look import chunk_maps
from polyspace.models.vjepa.vit import TubeletViT
from polyspace.report.chunk_drawing import borders, draw_chunks, palette, spread
from polyspace.utils.chunk_map import ChunkMap, tubelets


@pytest.mark.parametrize("budget", [None, 5])
def test_a_map_counts_its_tokens_and_places_them(budget):
    known = encoder().encode(clips(), num_chunks=budget)
    maps = chunk_maps(known)
    for m, valid in zip(maps, known.valid, strict=True):
        assert m.tokens == int(valid.sum())
        assert m.owner.shape == known.cells.grid
        assert m.owner.min() >= 0 and m.owner.max() < m.tokens
        assert m.sizes.sum() == pytest.approx(m.owner.size, rel=1e-4)
        assert np.isfinite(m.centroids).all() and (m.centroids <= np.array(m.owner.shape) - 1 + 1e-4).all()


def test_hidden_cells_have_no_map():
    with pytest.raises(ValueError, match="hidden"):
        chunk_maps(encoder().encode(clips(), hide("tubes")))


def test_tubelets_are_cells():
    known = TubeletViT(32, 1, 2, 8).eval().encode(torch.rand(1, 4, 16, 24, 3))
    m = chunk_maps(known)[0]
    assert m.tokens == 2 * 2 * 3 == len(np.unique(m.owner)) and (m.sizes == 1).all()
    assert m.centroids[m.owner[1, 0, 2]].tolist() == [1, 0, 2]
    assert tubelets((2, 2, 3)).begins().all()


def test_a_chunk_begins_where_its_cell_changes_hands():
    m = tubelets((3, 1, 2))
    still = ChunkMap(np.zeros((3, 1, 2), np.int64), m.centroids[:1], np.array([6.0], np.float32), m.prob)
    assert still.begins().tolist() == [[[True, True]], [[False, False]], [[False, False]]]


def test_arrays_come_back():
    m = tubelets((2, 2, 3))
    again = ChunkMap.from_arrays(m.arrays("a_"), "a_")
    assert all((getattr(m, k) == getattr(again, k)).all() for k in ("owner", "centroids", "sizes", "prob"))


def test_cells_are_spread_over_pixels_that_they_do_not_divide():
    got = spread(np.array([[0, 1]]), 3, 5)
    assert got.tolist() == [[0, 0, 0, 1, 1]] * 3
    assert borders(got).tolist() == [[False, False, False, True, False]] * 3


def test_drawing_keeps_a_chunk_in_one_colour_and_the_picture_below():
    frame = np.full((4, 8, 3), 100, np.uint8)
    colours = palette(2)
    got = draw_chunks(frame, np.array([[0, 1]]), colours, fill=0.5, thick=0)
    assert (got[:, :4] == got[0, 0]).all() and (got[:, 4:] == got[0, 7]).all() and (got[0, 0] != got[0, 7]).any()
    assert (draw_chunks(frame, np.array([[0, 1]]), colours, fill=0, thick=0) == frame).all()
