"""On one process ring attention is softmax attention, for any shape, padding, bias and mask."""

import torch
from drawn import DTYPES, normal, permutation, seeds
from hypothesis import given
from hypothesis import strategies as st

from polyspace.utils.attention_blocks import attend_block, merge_
from polyspace.utils.ring_attention import zigzag_ring_attention
from polyspace.utils.sequence import chunk_order, shard_sequence, unshard_sequence

few = st.integers(1, 4)
shapes = st.tuples(few, few, st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))


def by_hand(q, k, v, padding, causal, bias=None):
    """Softmax attention in float64; a query that sees no key gives 0."""
    q, k, v = q.double(), k.double(), v.double()
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias.double()[:, None, None]
    hidden = torch.zeros_like(logits, dtype=torch.bool) if padding is None else padding[:, None, None].expand_as(logits)
    if causal:
        hidden = hidden | torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return torch.nan_to_num(logits.masked_fill(hidden, -torch.inf).softmax(-1), 0.0) @ v


def inputs(shape, seed, causal, dtype=torch.float64):
    b, h, n, m, e = shape
    m = n if causal else m
    return tuple(normal(seed + i, b, h, length, e, dtype=dtype) for i, length in enumerate((n, m, m)))


@given(shapes, seeds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(sorted(DTYPES)))
def test_it_is_softmax_attention(shape, seed, causal, padded, biased, name):
    q, k, v = inputs(shape, seed, causal, DTYPES[name])
    padding = normal(seed + 3, shape[0], k.shape[2]) > 0 if padded else None
    bias = normal(seed + 4, shape[0], k.shape[2]) if biased else None
    out = zigzag_ring_attention(q, k, v, key_padding_mask=padding, key_bias=bias, is_causal=causal)
    tolerance = {"fp64": 1e-10, "fp32": 1e-5, "bf16": 3e-2}[name]
    assert out.dtype == q.dtype
    torch.testing.assert_close(out.double(), by_hand(q, k, v, padding, causal, bias), atol=tolerance, rtol=tolerance)


@given(shapes, seeds, st.booleans())
def test_gradients_are_those_of_softmax_attention_and_zero_at_padding(shape, seed, causal):
    one, two = ([x.requires_grad_() for x in inputs(shape, seed, causal)] for _ in "12")
    padding = normal(seed + 3, shape[0], one[1].shape[2]) > 0
    weight = normal(seed + 4, *shape[:2], one[0].shape[2], shape[4], dtype=torch.float64)
    (zigzag_ring_attention(*one, key_padding_mask=padding, is_causal=causal) * weight).sum().backward()
    (by_hand(*two, padding, causal) * weight).sum().backward()
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine.grad, torch.nan_to_num(theirs.grad, 0.0), atol=1e-9, rtol=1e-9)
    for x in one[1:]:
        assert not x.grad.transpose(1, 2)[padding].any()


@given(shapes, seeds, st.booleans(), st.sampled_from([1e4, -1e4]))
def test_what_stands_in_padded_keys_never_matters(shape, seed, causal, junk):
    q, k, v = inputs(shape, seed, causal)
    padding = normal(seed + 3, shape[0], k.shape[2]) > 0
    other = [torch.where(padding[:, None, :, None], junk, x) for x in (k, v)]
    first, second = (
        zigzag_ring_attention(q, *kv, key_padding_mask=padding, is_causal=causal) for kv in ((k, v), other)
    )
    assert torch.equal(first, second)


@given(shapes, seeds)
def test_padded_queries_give_nothing_and_get_nothing(shape, seed):
    q, k, v = inputs(shape, seed, False)
    q.requires_grad_()
    hidden = normal(seed + 3, shape[0], shape[2]) > 0
    out = zigzag_ring_attention(q, k, v, query_padding_mask=hidden)
    out.square().sum().backward()
    assert not out.transpose(1, 2)[hidden].any() and not q.grad.transpose(1, 2)[hidden].any()


@given(shapes, seeds)
def test_the_order_of_the_keys_does_not_matter(shape, seed):
    q, k, v = inputs(shape, seed, False)
    order = permutation(seed, k.shape[2])
    padding = normal(seed + 3, shape[0], k.shape[2]) > 0
    torch.testing.assert_close(
        zigzag_ring_attention(q, k[:, :, order], v[:, :, order], key_padding_mask=padding[:, order]),
        zigzag_ring_attention(q, k, v, key_padding_mask=padding),
    )


@given(shapes, seeds, st.integers(1, 4))
def test_blocks_merged_in_any_order_are_the_whole(shape, seed, parts):
    q, k, v = inputs(shape, seed, False)
    bias = torch.where(normal(seed + 3, shape[0], k.shape[2]) > 0.5, -torch.inf, 0.0).double()
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    for rows in permutation(seed, k.shape[2]).tensor_split(parts):
        if len(rows):
            merge_(out, lse, *attend_block(q, k[:, :, rows], v[:, :, rows], bias[:, rows], False, q.shape[-1] ** -0.5))
    torch.testing.assert_close(out, by_hand(q, k, v, bias == -torch.inf, False), atol=1e-9, rtol=1e-9)


@given(st.integers(1, 20), st.sampled_from(["contiguous", "zigzag"]), st.integers(1, 6), seeds)
def test_every_chunk_has_one_holder_and_one_process_holds_all(length, layout, ranks, seed):
    order = chunk_order(ranks, layout)
    assert sorted(order) == list(range(len(order))) and len(order) % ranks == 0
    x = normal(seed, 2, length, 3)
    assert torch.equal(unshard_sequence(shard_sequence(x, None, layout=layout), None, length, layout=layout), x)
