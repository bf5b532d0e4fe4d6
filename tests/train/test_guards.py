"""What isn't finite, wherever it comes from, moves no weight, no optimizer state and no moving average."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from library import PHASES as SMALL

from polyspace.config import run_command
from polyspace.data import featurize, synthetic
from polyspace.data.batch import CachedFeatures, VideoBatch
from polyspace.data.feature_store import FeatureStore
from polyspace.models.spaces.converters import ConverterBank, LinearConverter
from polyspace.train import train_converter
from polyspace.train.alignment.fusion_phase import FusionPhase, HeadSet, HeadShape
from polyspace.train.engine import PlainEngine
from polyspace.train.loop import FitSettings, fit
from polyspace.train.optim import build_adamw
from polyspace.train.phase import Phase, StepOutput
from polyspace.train.run import main as run_phases
from polyspace.utils.checkpoint_io import load_tensors, read_json, save_tensors, sha256_file
from polyspace.utils.errors import UserError

NAN, INF = float("nan"), float("inf")
PHASES = ("pretrain", "language", "probe", "action")


class _Spoiled(torch.autograd.Function):
    """The value as it is, its gradient none."""

    @staticmethod
    def forward(ctx, x, bad):
        ctx.bad = bad
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.bad, None


class Toy(Phase):
    """A regression with a moving average; at the calls in `bad` its gradient, not its loss, is `value`."""

    def __init__(self, bad=(), value=NAN):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 1)
        self.register_buffer("average", torch.zeros(1, 3))
        self.bad, self.value, self.calls = bad, value, 0

    def forward(self, batch: VideoBatch) -> StepOutput:
        out = self.net(batch.features["x"])[:, 0]
        if self.calls in self.bad:
            out = _Spoiled.apply(out, self.value)
        self.calls += 1
        return StepOutput((out - batch.label).square().mean())

    def after_update(self, step: int) -> None:
        self.average.lerp_(self.net.weight.detach(), 0.5)


def data(spoil: float | None = None, row: int = 3, key: str = "x") -> CachedFeatures:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)
    if spoil is not None:
        (x if key == "x" else y)[row] = spoil
    return CachedFeatures({"x": x}, y)


def engine_of(phase, precision="fp32"):
    return PlainEngine(phase, build_adamw(phase, 1e-2, 0.01), torch.device("cpu"), precision=precision)


def state(engine) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in (engine.model_state() | engine.optimizer_state()).items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_gradient_that_is_not_finite_under_a_loss_that_is_moves_nothing(value, precision):
    engine = engine_of(Toy(bad=(1,), value=value), precision)
    assert engine.update([data().batch(torch.arange(4))], 1e-2)[1]
    before = state(engine)
    output, sound = engine.update([data().batch(torch.arange(4))], 1e-2)
    assert output.loss.isfinite() and not sound and same(before, state(engine))
    assert engine.update([data().batch(torch.arange(4))], 1e-2)[1] and not same(before, state(engine))


@pytest.mark.parametrize("bad", range(4))
def test_one_bad_micro_batch_of_four_leaves_the_whole_update_out(bad, tmp_path, capsys):
    settings = FitSettings(steps=3, batch=8, lr=1e-2, accumulate=4, log_every=1, save_every=1)
    phase, good = Toy(bad=(4 + bad,)), Toy()
    for name, p in (("bad", phase), ("good", good)):
        fit(engine_of(p), 8, data().batch, settings, tmp_path / name)
    steps = [json.loads(line)["step"] for line in (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 3] and phase.calls == 12
    assert "step 1: non-finite loss or gradient, update skipped (1 in a row)" in capsys.readouterr().err
    first, second = (load_tensors(tmp_path / "bad" / f"step_00000{n}" / "model.safetensors") for n in (2, 3))
    assert not torch.equal(first["net.weight"], second["net.weight"])
    assert all(v.isfinite().all() for v in second.values())


@pytest.mark.parametrize("key", ["x", "label"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_row_costs_the_updates_that_see_it_and_no_other(key, value, tmp_path, capsys):
    settings = FitSettings(steps=8, batch=2, lr=1e-2, log_every=1)
    phase = Toy()
    fit(engine_of(phase), 8, data(value, key=key).batch, settings, tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6  # two epochs
    assert capsys.readouterr().err.count("update skipped (1 in a row)") == 2
    assert all(v.isfinite().all() for v in phase.state_dict().values())


def test_a_few_in_a_row_stop_the_run_at_the_last_good_state_and_say_where_it_is(tmp_path):
    settings = FitSettings(steps=9, batch=2, lr=1e-2, save_every=2, max_bad_steps=3)
    with pytest.raises(UserError, match=re.escape(f"3 non-finite steps in a row; last good state: {tmp_path}")):
        fit(engine_of(Toy(bad=range(3, 9))), 8, data().batch, settings, tmp_path)
    kept = load_tensors(tmp_path / (tmp_path / "latest").read_text().strip() / "model.safetensors")
    assert all(v.isfinite().all() for v in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", ["hnet", "tubelet"])
def test_one_bad_pixel_leaves_encoder_optimizer_and_target_as_they_were(arch, precision):
    from train.vjepa.small_jepa import batch, phase

    engine, clips = engine_of(phase(arch), precision), batch(4)
    assert engine.update([clips], 1e-3)[1]
    engine.phase.after_update(3)
    before = state(engine)
    for value in (NAN, INF):
        bad = replace(clips, video=clips.video.clone())
        bad.video[1, 2, 5, 5, 0] = value
        assert not engine.update([bad], 1e-3)[1] and same(before, state(engine))
    assert all(v.dtype == torch.float32 for v in before.values() if v.is_floating_point())


@pytest.mark.parametrize("value", [NAN, INF])
def test_bad_features_move_no_converter_and_no_head(value):
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    x[2, 1] = value
    heads = HeadSet(
        HeadShape(4, {"a": 3}, 8, 2), {"fusion": ConverterBank({"a": LinearConverter(torch.randn(4, 3), y[0])})}
    )
    labels = torch.arange(6) % 2
    fusion = FusionPhase(heads, CachedFeatures({"student": torch.randn(6, 4)}, labels).batch(torch.arange(6)))
    engine = engine_of(fusion)
    before = state(engine)
    assert not engine.update([CachedFeatures({"student": x}, labels).batch(torch.arange(6))], 1e-3)[1]
    assert same(before, state(engine))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("guards")
    made = f"--layout hmdb51 --out {out}/data --clips 24 --classes 2 --height 32 --width 40 --frames 7 --workers 1"
    assert run_command(synthetic.main, made.split()) == 0
    line = f"--dataset hmdb51 --root {out}/data --student identity --teachers timesformer --frames 4 --workers 0"
    assert run_command(featurize.main, [*line.split(), "--out", f"{out}/features"]) == 0
    return out


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_store_with_what_is_no_number_is_refused_by_all_who_read_it(store, value, tmp_path, capsys):
    shutil.copytree(store / "features", tmp_path / "features")
    path = tmp_path / "features" / "features_hmdb51_train.json"
    manifest = read_json(path)
    shard = path.parent / manifest["shards"][0]["file"]
    tensors = load_tensors(shard)
    tensors["timesformer"][5, 2] = value
    save_tensors(shard, tensors)
    manifest["shards"][0]["sha256"] = sha256_file(shard)
    path.write_text(json.dumps(manifest))
    wanted = f"features of timesformer are not finite (clip '{manifest['clips'][5]['id']}')"
    opened = FeatureStore(path)
    for read in (lambda: opened.features("timesformer"), lambda: list(opened.shards())):
        with pytest.raises(UserError, match=re.escape(wanted)):
            read()
    line = f"--features {path} --teachers timesformer --epochs 1 --save_dir {tmp_path}/c"
    assert run_command(train_converter.main, line.split()) == 2
    assert wanted in capsys.readouterr().err


def spoiled(batch: VideoBatch) -> VideoBatch:
    """The batch, but that one number of each of its inputs is none."""

    def spoil(value):
        if isinstance(value, dict):
            return {k: spoil(v) for k, v in value.items()}
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.clone()
            value[(0,) * value.ndim] = NAN
        return value

    return replace(batch, **{name: spoil(getattr(batch, name)) for name in ("video", "features", "actions")})


@pytest.mark.slow
def test_every_phase_skips_a_bad_batch_and_ends_in_numbers(tmp_path, monkeypatch, capsys):
    update, calls = PlainEngine.update, dict.fromkeys(("JepaPhase", "LanguagePhase", "ProbePhase", "ActionPhase"), 0)

    def second_is_bad(self, batches, lr, clips=None):
        name = type(self.phase).__name__
        calls[name] = calls.get(name, 0) + 1
        return update(self, [spoiled(b) for b in batches] if calls[name] == 2 else batches, lr, clips)

    monkeypatch.setattr(PlainEngine, "update", second_is_bad)
    sets = [
        f"{part}.{item}" for part, items in SMALL.items() for item in items.split() if not item.startswith("steps=")
    ]
    sets += [f"{name}.{item}" for name in PHASES for item in ("steps=3", "log_every=1")]
    line = ["--work_dir", str(tmp_path), "--sequence", ",".join(PHASES)]
    assert run_command(run_phases, [*line, *(x for s in sets for x in ("--set", s))]) == 0
    told = capsys.readouterr().err
    for name in PHASES:
        assert f"{name}: step 1: non-finite loss or gradient, update skipped (1 in a row)" in told
        folder = tmp_path / name
        weights = load_tensors(folder / (folder / "latest").read_text().strip() / "model.safetensors")
        assert all(v.isfinite().all() for v in weights.values() if v.is_floating_point()), name
