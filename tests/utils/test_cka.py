import pytest
import torch

from polyspace.utils.cka import CkaMeter, linear_cka


def spaces(n: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=g) + 5
    return {"x": x, "near": x[:, :7] + 0.5 * torch.randn(n, 7, generator=g), "noise": torch.randn(n, 9, generator=g)}


@pytest.mark.parametrize("debiased", [True, False])
def test_one_update_of_all_rows_is_the_cka_of_these_rows(debiased):
    rows = spaces(60)
    meter = CkaMeter(list(rows), debiased)
    meter.update(rows)
    m = meter.matrix()
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert m[i, j].item() == pytest.approx(linear_cka(rows[a], rows[b], debiased=debiased).item(), abs=1e-9)


def test_minibatches_of_any_size_estimate_the_value_of_the_whole_and_the_biased_form_does_not():
    rows = spaces(4000)
    whole = linear_cka(rows["x"], rows["noise"], debiased=True).item()
    for size in (8, 50):
        meters = CkaMeter(list(rows)), CkaMeter(list(rows), debiased=False)
        for first in range(0, 4000, size):
            for meter in meters:
                meter.update({name: x[first : first + size] for name, x in rows.items()})
        assert meters[0].matrix()[0, 2].item() == pytest.approx(whole, abs=0.02)
        assert meters[0].matrix()[0, 1].item() == pytest.approx(linear_cka(rows["x"], rows["near"]).item(), abs=0.03)
        assert meters[1].matrix()[0, 2].item() > whole + 0.1


def test_a_constant_space_has_no_likeness_and_too_few_rows_are_refused():
    meter = CkaMeter(["a", "b"])
    meter.update({"a": torch.randn(6, 3), "b": torch.ones(6, 2)})
    assert meter.matrix()[0, 1] == 0 and meter.matrix()[1, 1] == 0
    with pytest.raises(ValueError, match="at least 4"):
        meter.update({"a": torch.randn(3, 3), "b": torch.randn(3, 2)})
