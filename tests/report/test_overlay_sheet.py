"""Sheets: a cell lies where it was asked to, colours stay with their chunk, what is not seen is dim."""

import numpy as np
import pytest

from polyspace.report.chunk_drawing import palette
from polyspace.report.overlay_sheet import GAP, Sheet, draw_layer, picture_shape, place_cells
from polyspace.utils.chunk_map import ChunkMap, tubelets


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((60, 100), (0, 20, 60, 60)),
        ((100, 60), (20, 0, 60, 60)),
        ((60, 60), (0, 0, 60, 60)),
        ((45, 80), (3, 7, 30, 60)),
    ],
)
def test_a_cell_lies_in_its_part_of_the_box(shape, box):
    cells = np.arange(6).reshape(2, 3)
    got = place_cells(cells, shape, box)
    top, left, height, width = box
    for y in range(shape[0]):
        for x in range(shape[1]):
            row, column = (y + 0.5 - top) / (height / 2), (x + 0.5 - left) / (width / 3)
            inside = 0 <= row < 2 and 0 <= column < 3
            assert got[y, x] == (cells[int(row), int(column)] if inside else -1)


def test_a_crop_that_overhangs_the_frame_loses_its_edge():
    got = place_cells(np.arange(4).reshape(2, 2), (20, 20), (-10, -10, 40, 40))
    assert (got == np.arange(4).reshape(2, 2).repeat(10, 0).repeat(10, 1)).all()
    assert got.min() == 0


def test_frames_keep_their_size_unless_too_large_or_too_small():
    for given, limit, made in (
        ((240, 320), 720, (240, 320)),
        ((2160, 3840), 720, (720, 1280)),
        ((1920, 1080), 720, (720, 405)),
        ((100, 4000), 720, (36, 1440)),
        ((24, 24), 720, (192, 192)),
        ((1, 1), 720, (180, 180)),
        ((64, 80), 100, (64, 80)),
        ((1, 3000), 720, (1, 1440)),
    ):
        assert picture_shape(*given, limit) == made, given


def test_the_colours_lines_and_dots_are_where_they_belong():
    frame = np.full((40, 80, 3), 200, np.uint8)
    colours, box = palette(2), (0.0, 20.0, 40.0, 40.0)
    owner = np.array([[0, 0], [1, 0]])
    layer = draw_layer(owner, np.array([[1, 0]]), (40, 80), box, colours, 0.5)
    sheet = Sheet((40, 80), 2, "legend")
    out = sheet.draw(frame, [layer, layer], ["a", "b"], "foot")
    assert out.shape == (*sheet.shape, 3) and not any(n % 2 for n in sheet.shape)
    for panel in range(2):
        left = GAP + panel * (sheet.panel + GAP) + (sheet.panel - 80) // 2
        seen = out[sheet.line : sheet.line + 40, left : left + 80].astype(int)
        for y, x, token in ((5, 25, 0), (5, 55, 0), (35, 55, 0), (36, 24, 1)):
            assert np.abs(seen[y, x] - (100 + 127.5 * colours[token])).max() <= 2
        assert (np.abs(seen[5, 5] - 80) <= 1).all()  # outside: dim
        assert (seen[30, 30] == 255).all()  # the dot of the only cell that begins
        assert seen[10, 40].max() < 250 and (seen[30, 40] > 235).all()  # a line only between two tokens
        assert (seen[10, 20] > 235).all() and (seen[10, 60] > 235).all()  # and around what is seen


def test_headings_and_the_line_below_fit_and_change():
    for shape in ((180, 180), (240, 427), (720, 1280), (20, 1440)):
        sheet = Sheet(shape, 2, "a token begins, dark: not seen")
        layer = draw_layer(np.zeros((1, 1), int), np.zeros((0, 2)), shape, (0, 0, *shape), None, 0)
        out = sheet.draw(np.zeros((*shape, 3), np.uint8), [layer] * 2, ["chunks: 1568 tokens", "tubelets"], "600.0 s")
        low = out[sheet.line + shape[0] :].copy()
        for edge in (out[: sheet.line, :1], low[:, :2], low[:, -2:]):
            assert (edge == edge[0, 0]).all()
        other = sheet.draw(np.zeros((*shape, 3), np.uint8), [layer] * 2, ["chunks: 2 tokens", "tubelets"], "9 s")
        assert (other[: sheet.line] != out[: sheet.line]).any() and (other[sheet.line + shape[0] :] != low).any()


def test_a_token_begins_once_at_the_middle_of_its_first_cells():
    owner = np.array([[[0, 0, 0], [1, 1, 2]], [[0, 3, 0], [3, 3, 2]], [[0, 3, 4], [1, 3, 2]]])
    chunks = ChunkMap(owner, np.zeros((5, 3), np.float32), np.ones(5, np.float32), np.ones((3, 2, 3), np.float32))
    assert chunks.beginnings().tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 2], [1, 1, 1], [2, 0, 2]]
    assert len(tubelets((2, 3, 4)).beginnings()) == 24
