"""Small stores, converters and indexes for tests: a student `s` of six dims, a teacher `t` of four."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyspace.config import run_command
from polyspace.data.feature_store import FeatureStore
from polyspace.data.store_writer import ClipResult, StoreWriter
from polyspace.models.spaces.converters import ConverterBank, ResidualMLP, fit_converter, save_converters
from polyspace.train.convert_index import ConvertConfig
from polyspace.train.export_index import main as export_main
from polyspace.utils.metrics import knn_overlap, mean_cosine
from polyspace.utils.moments import Moments
from polyspace.utils.standardise import fit_standardiser

D, E = 6, 4
MIX = torch.randn(D, E, generator=torch.Generator().manual_seed(5))


def space(name: str, dim: int, backend: str = "transformers") -> dict[str, Any]:
    return {
        "checkpoint": f"hub/{name}",
        "revision": "main",
        "trained": "clips",
        "backend": backend,
        "digest": f"digest of {name}",
        "dim": dim,
        "grid": [1, 1, 1],
        "pooling": "mean",
        "plan": {"frames": 16},
    }


def student_rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + 0.5


def make_store(folder: Path, n: int = 11, shard_rows: int = 4, teacher: bool = True) -> FeatureStore:
    """Clips c0 … c{n-1}, in shards of `shard_rows`."""
    from polyspace.data import store_writer

    clips = [{"id": f"c{i}", "label": i % 2, "group": str(i)} for i in range(n)]
    writer = StoreWriter(folder / "features_x_train.json", {"n": n, "teacher": teacher}, 2)
    writer.open()
    x = student_rows(n)
    for b in range(-(-n // 2)):
        part = x[2 * b : 2 * b + 2]
        writer.write_part(b, {"s": part} | ({"t": part @ MIX} if teacher else {}), [ClipResult(9)] * len(part))
    spaces = {"s": space("s", D)} | ({"t": space("t", E)} if teacher else {})
    head = {"student": "s", "spaces": spaces, "classes": ["a", "b"], "missing": []}
    before, store_writer.SHARD_BYTES = store_writer.SHARD_BYTES, shard_rows * 8
    try:
        return writer.finish(clips, head, 8)
    finally:
        store_writer.SHARD_BYTES = before


def make_converters(path: Path, kind: str = "ridge", backend: str = "transformers", d: int = D, e: int = E) -> Path:
    """Fitted on a noisy linear relation, with the scores that train-converter writes."""
    generator = torch.Generator().manual_seed(1)
    mix = MIX if (d, e) == (D, E) else torch.randn(d, e, generator=generator)
    x = torch.randn(400, d, generator=generator) + 0.5
    y = x @ mix + 0.3 * torch.randn(400, e, generator=generator)
    fit, held = Moments().update(x[:300], y[:300]), Moments().update(x[300:], y[300:])
    converter = fit_converter("ridge", fit, held)[0]
    if kind == "residual_mlp":
        standardiser = fit_standardiser(fit.mean_y(), fit.cov_yy(), "phi_s")
        converter = ResidualMLP(converter, 5, fit.mean_x(), fit.cov_xx().diagonal().sqrt(), standardiser)
        torch.nn.init.normal_(converter.mlp[2].weight, std=0.1, generator=generator)
    with torch.no_grad():
        guess = converter(x[300:])
    lost = (guess - y[300:]).square().sum() / (y[300:] - y[:300].mean(0)).square().sum()
    scores = {"r2": 1 - lost.item(), "cosine": mean_cosine(guess, y[300:]), "knn_overlap": knn_overlap(guess, y[300:])}
    about = {
        "kind": kind,
        "tokens": False,
        "student": "s",
        "fingerprint": "f",
        "spaces": {"s": space("s", d), "t": space("t", e, backend)},
        "held_out": {"t": {"fitted_on": 300, "held_out": 100, "scored_rows": 100, "kinds": {kind: scores}}},
    }
    save_converters(path, ConverterBank({"t": converter}), about)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """All bytes of an index but those of run.json, which holds the time."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "run.json"}


def save_rows(path: Path, rows: torch.Tensor, dtype: str = "float32") -> Path:
    np.save(path, rows.numpy().astype(dtype))
    return path


def make_place(folder: Path) -> Path:
    """The folder, with a store, the index of its student, and converters."""
    make_store(folder, 41)
    make_converters(folder / "c.pt")
    assert export_main(f"--features {folder}/features_x_train.json --space s --out {folder}/s".split()) == 0
    return folder


def config(place, **more):
    given = {"index": place / "s", "converters": place / "c.pt", "space": "t", "out": place / "t"}
    return ConvertConfig(**(given | more))


def sentence(main, line, capsys):
    """The command ends with exit code 2 and one sentence, which is returned."""
    capsys.readouterr()
    assert run_command(main, line.split()) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last
