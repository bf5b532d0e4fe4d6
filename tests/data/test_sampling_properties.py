"""What holds of the frames that are taken, for a clip of any length."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from polyspace.data.sampling import Sampling, multi_clip_indices, segment_indices, stride_indices

lengths, counts = st.integers(1, 5000), st.integers(1, 64)
strides = st.floats(0.01, 50)
words = st.one_of(
    st.just("segments"), strides.map(lambda s: f"stride:{s}"), st.floats(0.1, 120).map(lambda f: f"fps:{f}")
)
draws = st.one_of(st.none(), st.integers(0, 2**63 - 1))


@given(lengths, counts, words, st.integers(1, 4), st.floats(1, 240), draws)
def test_every_window_has_its_number_of_frames_in_order_and_inside(length, frames, word, views, fps, draw):
    windows = replace(Sampling.parse(word), draw=draw).pick(length, frames, fps, views)
    assert len(windows) == views
    for window in windows:
        assert len(window) == frames and window == sorted(window)
        assert window[0] >= 0 and window[-1] < length


@given(lengths, counts, words, st.integers(1, 4), st.floats(1, 240), draws)
def test_the_same_draw_takes_the_same_frames(length, frames, word, views, fps, draw):
    sampling = replace(Sampling.parse(word), draw=draw)
    assert sampling.pick(length, frames, fps, views) == sampling.pick(length, frames, fps, views)


@given(lengths, counts)
def test_segments_cover_the_clip_evenly(length, frames):
    picks = segment_indices(length, frames)
    for i, pick in enumerate(picks):
        assert i * length / frames - 1 <= pick <= (i + 1) * length / frames
    steps = [b - a for a, b in itertools.pairwise(picks)]
    assert not steps or max(steps) - min(steps) <= 1
    assert picks[0] <= length / frames / 2 and length - 1 - picks[-1] <= length / frames / 2


@given(st.integers(1, 64), st.integers(0, 40))
def test_segments_of_odd_length_lie_as_far_from_the_start_as_from_the_end(frames, half):
    length = frames * (2 * half + 1)
    picks = segment_indices(length, frames)
    assert [length - 1 - pick for pick in reversed(picks)] == picks


@given(lengths, counts)
def test_a_clip_no_longer_than_its_segments_shows_every_frame(length, frames):
    if length <= frames:
        assert set(segment_indices(length, frames)) == set(range(length))
    else:
        assert len(set(segment_indices(length, frames))) == frames


@given(lengths, counts, st.integers(1, 40))
def test_a_whole_stride_is_kept_until_the_clip_ends(length, frames, stride):
    for offset in (0.0, 0.5, 1.0):
        picks = stride_indices(length, frames, stride, offset)
        assert all(b - a == stride or b == length - 1 for a, b in itertools.pairwise(picks))
    assert stride_indices(length, frames, stride, 0.0)[0] == 0
    if (frames - 1) * stride < length:
        assert stride_indices(length, frames, stride, 1.0)[-1] == length - 1


@given(lengths, counts, strides, st.integers(2, 6))
def test_windows_begin_later_and_later_from_the_start_to_the_end(length, frames, stride, clips):
    windows = multi_clip_indices(length, frames, stride, clips)
    starts = [window[0] for window in windows]
    assert starts == sorted(starts) and starts[0] == 0
    assert windows[0] == stride_indices(length, frames, stride, 0.0)
    assert windows[-1] == stride_indices(length, frames, stride, 1.0)


@given(words.filter(lambda w: w == "segments"), st.lists(st.integers(0, 500), min_size=1, max_size=9))
def test_what_is_parsed_is_said_again(word, indices):
    named = "index:" + ",".join(map(str, indices))
    for text in (word, named):
        assert str(Sampling.parse(text)) == text and Sampling.parse(str(Sampling.parse(text))) == Sampling.parse(text)
