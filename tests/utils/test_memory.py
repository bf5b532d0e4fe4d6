import torch
from torch import nn

from polyspace.utils.memory import LiveBytes, activation_peak, weight_bytes

MIB = 2**20


def mib(n):
    return torch.ones(n * MIB // 4)


def test_the_peak_counts_what_is_alive_at_once_and_not_what_was_freed():
    with LiveBytes() as live:
        for _ in range(5):
            x = mib(3)
            y = x * 2
            del x, y
        z = mib(4)
    assert live.peak == 6 * MIB and live.now == 4 * MIB
    del z
    assert live.now == 0


def test_views_in_place_operations_and_what_was_there_before_take_nothing():
    old = mib(8)
    with LiveBytes() as live:
        old.view(-1, 2).mul_(2)
        part = old[5:10]
        part.add_(1)
    assert live.peak == 0


def test_a_chain_of_layers_holds_two_activations_at_a_time_whatever_its_depth():
    x = torch.ones(1024, 64)  # 256 KiB
    for depth in (2, 8):
        model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(depth)])
        with torch.inference_mode():
            assert activation_peak(lambda model=model: model(x), torch.device("cpu")) == 2 * x.nbytes


def test_weights_are_parameters_and_buffers_in_their_own_precision():
    module = nn.BatchNorm1d(8).bfloat16()
    assert weight_bytes(module) == 4 * 8 * 2 + 8
