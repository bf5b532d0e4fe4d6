"""Which frames are taken: cases worked by hand."""

from dataclasses import replace

import pytest
import torch

from polyspace.data.sampling import Sampling, multi_clip_indices, segment_indices, stride_indices
from polyspace.utils.errors import UserError


def test_segments_take_the_middle_frame_of_each():
    assert segment_indices(16, 4) == [2, 6, 10, 14]
    assert segment_indices(10, 4) == [1, 3, 6, 8]


def test_a_short_clip_repeats_frames_in_order():
    assert segment_indices(3, 6) == [0, 0, 1, 1, 2, 2]
    assert stride_indices(3, 5, 1) == [0, 1, 2, 2, 2]


def test_random_segments_stay_inside_their_segment_and_vary():
    generator = torch.Generator().manual_seed(0)
    draws = [segment_indices(40, 8, generator) for _ in range(50)]
    assert all(5 * i <= pick < 5 * (i + 1) for draw in draws for i, pick in enumerate(draw))
    assert len({tuple(d) for d in draws}) > 40


def test_strides_sit_at_start_middle_and_end():
    assert stride_indices(20, 4, 2, offset=0) == [0, 2, 4, 6]
    assert stride_indices(20, 4, 2) == [6, 8, 10, 12]
    assert stride_indices(20, 4, 2, offset=1) == [13, 15, 17, 19]
    assert multi_clip_indices(20, 4, 2, 3) == [stride_indices(20, 4, 2, o) for o in (0, 0.5, 1)]


def test_words_are_parsed_and_said_again():
    for word in ("segments", "stride:4", "fps:8", "index:0,3,6"):
        assert str(Sampling.parse(word)) == word
    assert Sampling.parse("fps:5").pick(100, 3, fps=25.0) == [[44, 49, 54]]
    assert Sampling.parse("index:0,3").pick(5, 8, 25.0) == [[0, 3]]
    assert len(Sampling.parse("segments").pick(64, 8, 25.0, clips=3)) == 3


@pytest.mark.parametrize("word", ["segmnts", "stride:0", "fps:x", "index:1,b", "index:-1,2"])
def test_a_wrong_word_names_itself(word):
    with pytest.raises(UserError, match=word):
        Sampling.parse(word)


def test_every_kind_gives_indices_inside_any_clip():
    for n in range(1, 40):
        for frames in (1, 2, 7, 16):
            for word in ("segments", "stride:3", "fps:7"):
                for views in (1, 3):
                    for window in Sampling.parse(word).pick(n, frames, 24.0, views):
                        assert len(window) == frames and window == sorted(window) and 0 <= window[0] <= window[-1] < n


@pytest.mark.parametrize("word", ["segments", "stride:3", "fps:7"])
def test_a_draw_gives_frames_of_its_own_and_the_same_ones_again(word):
    drawn = [replace(Sampling.parse(word), draw=k) for k in range(12)]
    (windows,) = zip(*(d.pick(90, 8, 24.0) for d in drawn), strict=True)
    assert len({tuple(w) for w in windows}) > 6 and drawn[3].pick(90, 8, 24.0) == [windows[3]]
    assert all(w == sorted(w) and 0 <= w[0] <= w[-1] < 90 for w in windows)
