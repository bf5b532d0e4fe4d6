"""What holds of batches, padding and clips chosen by number, whatever is there and whatever is not."""

import torch
from drawn import normal, permutation, seeds
from hypothesis import given
from hypothesis import strategies as st

from polyspace.data.batch import CachedFeatures, VideoBatch
from polyspace.utils.misc import masked_mean, pad_stack

lengths = st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any)


@given(
    lengths, st.lists(st.integers(1, 3), max_size=2), seeds, st.sampled_from([torch.float32, torch.bool, torch.int64])
)
def test_what_is_padded_comes_back(rows, rest, seed, dtype):
    items = [(10 * normal(seed + i, n, *rest)).to(dtype) for i, n in enumerate(rows)]
    padded, valid = pad_stack(items)
    assert padded.shape == (len(rows), max(rows), *rest) and padded.dtype == dtype
    assert valid.sum(1).tolist() == rows
    assert all(torch.equal(padded[i][valid[i]], item) for i, item in enumerate(items))
    assert not padded[~valid].any()


@given(lengths, st.integers(1, 4), seeds)
def test_padding_never_matters_to_a_mean(rows, d, seed):
    padded, valid = pad_stack([normal(seed + i, n, d) for i, n in enumerate(rows)])
    junk = torch.where(valid[..., None], padded, float("nan"))
    mean = masked_mean(junk, valid)
    assert torch.equal(mean, masked_mean(padded, valid)) and torch.isfinite(mean).all()
    for i, n in enumerate(rows):
        torch.testing.assert_close(mean[i], padded[i, :n].mean(0) if n else torch.zeros(d))


def held(n: int, seed: int, labels: bool, text: bool, valid: bool, saliency: bool) -> CachedFeatures:
    return CachedFeatures(
        {"a": normal(seed, n, 3), "b": normal(seed + 1, n, 2, 4)},
        torch.arange(n) if labels else None,
        text=[f"clip {i}" for i in range(n)] if text else None,
        valid=normal(seed, n, 2) > 0 if valid else None,
        saliency=normal(seed, n, 2) if saliency else None,
    )


@given(st.integers(1, 9), seeds, *[st.booleans()] * 4, st.data())
def test_clips_come_in_the_order_they_are_asked_for_with_what_there_is_of_each(
    n, seed, labels, text, valid, saliency, data
):
    source = held(n, seed, labels, text, valid, saliency)
    asked = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=12)))
    batch = source.batch(asked)
    assert len(batch) == len(asked) and batch.indices == list(range(len(asked)))
    assert all(torch.equal(batch.features[name], value[asked]) for name, value in source.features.items())
    assert (batch.label is None) != labels and (batch.text is None) != text
    assert (batch.valid is None) != valid and (batch.saliency is None) != saliency and batch.video is None
    assert not labels or torch.equal(batch.label, asked)
    assert not text or batch.text == [f"clip {i}" for i in asked.tolist()]


@given(st.integers(1, 9), seeds, *[st.booleans()] * 4)
def test_moving_a_batch_changes_nothing_and_makes_up_nothing(n, seed, labels, text, valid, saliency):
    batch = held(n, seed, labels, text, valid, saliency).batch(permutation(seed, n))
    moved = batch.to(torch.device("cpu"))
    for name, value in vars(batch).items():
        there = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(there, value)
        elif name == "features":
            assert list(there) == list(value) and all(torch.equal(there[k], value[k]) for k in value)
        else:
            assert there == value


@given(st.lists(st.integers(0, 20), unique=True, min_size=1, max_size=6), st.integers(0, 100), st.integers(0, 100))
def test_clips_that_were_left_out_keep_the_places_of_the_others(rows, step, first):
    batch = VideoBatch(label=torch.tensor(rows), place=(step, first), rows=tuple(rows))
    assert batch.indices == [first + row for row in rows]
