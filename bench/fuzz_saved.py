"""What bench/fuzz.py reads: files that our own commands write, and configurations. Each reader is made from the small
library that tests/library.py builds with the packaged backbones."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_readers import Reader, check_inside, check_text

from polyspace.utils.checkpoint_io import sha256_file, sha256_json
from polyspace.utils.reading import SEAL

REPOSITORY = Path(__file__).parents[1]


def taken(*parts: str) -> Any:
    """A `make` that copies parts of the library."""

    def make(folder: Path, library: Path) -> None:
        for part in parts:
            source, target = library / part, folder / part
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("tensorboard", "*.png", "data"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        for path in folder.rglob("*.json"):  # readers take JSON without its seal: what is changed gets past it
            about = json.loads(path.read_text())
            if isinstance(about, dict) and about.pop(SEAL, None) is not None:
                path.write_text(json.dumps(about))

    return make


def seal(folder: Path, hit: Path) -> None:
    """Every recorded sum of a file is that of the file as it is now; damaged manifests are left alone."""
    for path in sorted(folder.rglob("*.json"), key=lambda p: p.name == "bundle.json"):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
            about = json.loads(path.read_text())
            if path.name == "bundle.json":
                about["files"] |= {
                    n: sha256_file(path.parent / n) for n in about["files"] if (path.parent / n).is_file()
                }
                about["sha256"] = sha256_json({k: v for k, v in about.items() if k != "sha256"})
            elif path.name == "index.json":
                about["sha256"] |= {n: sha256_file(path.parent / n) for n in about["sha256"]}
            elif path.name == "checksums.json":
                about = {n: sha256_file(path.parent / n) for n in about}
            elif path.name.startswith("features_"):
                for shard in about["shards"]:
                    shard["sha256"] = sha256_file(path.parent / shard["file"])
            elif path.with_suffix(".safetensors").is_file() and "sha256" in about:
                about["sha256"] = sha256_file(path.with_suffix(".safetensors"))
            else:
                continue
            path.unlink()  # it may be a link to the good one
            path.write_text(json.dumps(about))


def read_store(folder: Path, hit: Path) -> None:
    from polyspace.data.feature_store import FeatureStore

    store = FeatureStore(folder / "features" / "features_hmdb51_train.json")
    check_text(store.fingerprint, store.student, *store.ids, *store.groups, *store.classes, *store.spaces)
    store.stand_ins, store.labels()
    for name in store.spaces:
        assert store.features(name).shape[0] == len(store)
    assert sum(len(shard) for shard in store.shards())
    store.is_sound()


def read_index(folder: Path, hit: Path) -> None:
    from polyspace.data.index import load_index

    index = load_index(folder / "indexes" / "videomae")
    index.verify()
    check_text(*(index.ids or ()))
    scores, rows = index.search(np.ones(index.dim, np.float32), 3)
    assert len(scores) == len(rows) == min(3, index.rows) and index.vectors.shape == (index.rows, index.dim)


def read_bundle(folder: Path, hit: Path) -> None:
    import polyspace

    ps = polyspace.load(folder / "bundle", device="cpu")
    for place in ps.bundle.folders.values():
        check_inside(folder / "bundle", place)
    clip = np.zeros((8, 32, 32, 3), np.uint8)
    for space in ps.spaces:
        assert ps.encode(clip, space=space).ndim == 1
    assert ps.embed_text("a word").ndim == 1
    for head in (None, "probe"):
        for name, _ in ps.classify(clip, head=head):
            check_text(name)


def read_gathered(folder: Path, hit: Path) -> None:
    from polyspace.bundle.gather import _evaluation, gather

    made = gather(
        converters=folder / "converters" / "converters_ep2.pt",
        tokens=folder / "tokens" / "converters_ep2.pt",
        fusion=folder / "fusion" / "fusion_ep2.pt",
        run=folder / "outputs",
        student=None,
    )
    _evaluation(folder / "fusion" / "eval_hmdb51_validation.json", made)


def make_report(folder: Path, library: Path) -> None:
    taken("outputs", "features", "fusion", "converters", "indexes", "bundle/bundle.json")(folder, library)
    shutil.rmtree(folder / "fusion" / "cache")
    for path in folder.rglob("*"):
        if path.suffix in (".pt", ".safetensors", ".npy") and path.name != "looks.safetensors":
            path.unlink()
    (folder / "demo.json").write_text(json.dumps({
        "title": "Demo", "intro": "What.", "backbones": {"words": "w", "header": ["a", "b"], "rows": [["1", "2"]]},
        "steps": [{"line": "polyspace eval --x", "seconds": 1.5}]}))  # fmt: skip
    (folder / "search.json").write_text(
        json.dumps({"queries": [{"query": "a", "kind": "text", "results": [{"id": "x", "score": 0.5}]}]})
    )


def read_report(folder: Path, hit: Path) -> None:
    from polyspace.report.run_files import find_files
    from polyspace.report.run_report import Seen, write_report

    write_report(find_files(folder), Seen(), folder / "report.html", "polyspace report")


def read_run(folder: Path, hit: Path) -> None:
    """What `main.py` reads of an earlier run, what the app reads, and what later phases start from."""
    import torch

    from polyspace.explorer.rollouts import open_world
    from polyspace.report.phase_sections import write_pipeline_report
    from polyspace.train.downstream.common import curves
    from polyspace.train.downstream.saved_probe import load_probe
    from polyspace.train.language_align import load_language
    from polyspace.train.run import RunConfig, _begin, _finished, config_hash

    run = folder / "outputs"
    config = RunConfig(work_dir=run)
    manifest = _begin(config)
    for name in ("pretrain", "language", "probe", "action"):
        config_hash(config, name)
        _finished(manifest["phases"].get(name), "x")
    if hit.name in ("first.json", "metrics.jsonl"):
        curves(hit.parent, {"accuracy": "a", "gain": "g"}, "y")
    if hit.parent.name == "probe":
        load_probe(run / "probe")
    elif hit.parent.name == "language":
        load_language(run / "language")
    else:
        open_world(run, torch.device("cpu"))
    if hit.suffix == ".json" and hit.stat().st_size % 4 == 0:  # pictures take seconds
        write_pipeline_report(run, manifest, "run", [])


def read_looks(folder: Path, hit: Path) -> None:
    from polyspace.report.chunk_figures import chunks_figure, mistakes_figure
    from polyspace.utils.looks_file import load_looks

    looks = load_looks(hit)
    if looks.maps:
        chunks_figure(looks)
    if looks.error is not None and looks.hidden is not None:
        mistakes_figure(looks)


def read_encoder_folder(folder: Path, hit: Path) -> None:
    from polyspace.models.vjepa.saved import load_encoder

    load_encoder(folder / "outputs" / "pretrain")


def make_backbones(folder: Path, library: Path) -> None:
    shutil.copytree(REPOSITORY / "polyspace" / "assets" / "backbones", folder / "backbones")


def read_backbone(folder: Path, hit: Path) -> None:
    from polyspace.models.backbones import describe_all

    name = hit.parent.name
    card = describe_all(name, [], 16, [f"{name}={hit.parent}"], strict=True)[name]
    card.plan.range()
    check_text(json.dumps(card.about()))
    model = card.load()
    card.classifier()
    assert model is not None


def _engine() -> Any:
    """A little phase of our own loop."""
    import torch

    from polyspace.train.engine import PlainEngine

    torch.manual_seed(0)
    phase: Any = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    engine = PlainEngine(phase, torch.optim.AdamW(phase.parameters()), torch.device("cpu"))
    phase(torch.ones(2, 3)).sum().backward()
    engine.optimizer.step()
    return engine


def make_training(folder: Path, _: Path) -> None:
    from polyspace.train.checkpoint import _write_parts, rng_state, save_checkpoint
    from polyspace.utils.checkpoint_io import save_torch

    engine = _engine()
    save_checkpoint(folder / "whole", 3, engine, {"seen": 12, "bad": 0})
    place = folder / "sharded" / "step_000003"
    _write_parts(place / "sharded", engine.model_state(), engine.optimizer_state())
    save_torch(place / "trainer.pt", {"step": 3, "rng": rng_state()})
    files = sorted(f for f in place.rglob("*") if f.suffix in (".safetensors", ".pt"))
    (place / "checksums.json").write_text(json.dumps({str(f.relative_to(place)): sha256_file(f) for f in files}))
    (folder / "sharded" / "latest").write_text("step_000003\n")
    shutil.copyfile(folder / "whole" / "latest", folder / "whole" / "latest.txt")  # an ending, to be hit by
    shutil.copyfile(folder / "sharded" / "latest", folder / "sharded" / "latest.txt")


def read_training(folder: Path, hit: Path) -> None:
    from polyspace.train.checkpoint import load_checkpoint, restore_rng

    place = folder / hit.relative_to(folder).parts[0]
    shutil.move(place / "latest.txt", place / "latest")
    state = load_checkpoint(place, _engine())
    assert state is not None
    restore_rng(state["rng"])


def make_configs(folder: Path, _: Path) -> None:
    from polyspace.train.run import RunConfig

    for path in sorted((REPOSITORY / "configs").iterdir()):
        shutil.copyfile(path, folder / path.name)
    (folder / "all.yaml").write_text(yaml.safe_dump(RunConfig().model_dump(mode="json")))
    (folder / "set.txt").write_text("pretrain.steps=50\ndata.size=48\npretrain.lr=1e-3\npretrain.ema=[0.9, 1]\n")


def read_config_file(folder: Path, hit: Path) -> None:
    from polyspace.config import parse
    from polyspace.train.engine_deepspeed import full_config, read_config
    from polyspace.train.run import RunConfig

    if hit.suffix == ".json":
        full_config(read_config(hit), hit, RunConfig().pretrain, 1)
        return
    argv = ["--config", str(hit)]
    if hit.suffix == ".txt":
        argv = [w for line in hit.read_bytes().decode("utf-8", "replace").splitlines() for w in ("--set", line)]
    parse(RunConfig, argv, prog="main.py", about="", example="")


PROGRESS: dict[str, Any] = {
    "made_from": {"source": {"rows": 3}, "converter": "x"},
    "source_time": 5,
    "rows_done": 2,
    "sha256": "0" * 64,
}


def make_lists(folder: Path, library: Path) -> None:
    """Small files that commands leave for themselves."""
    (folder / "unreadable.json").write_text(json.dumps({"a": "no frame decodes"}))
    (folder / "progress.json").write_text(json.dumps(PROGRESS))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25, "eval": true}\n')
    shutil.copyfile(library / "features" / "features_hmdb51_train.run.json", folder / "features_x_train.run.json")
    shutil.copyfile(library / "features" / "features_hmdb51_train.json", folder / "features_x_train.json")


def read_list(folder: Path, hit: Path) -> None:
    from polyspace.bundle.library import video_paths
    from polyspace.data.clip_source import FileClips
    from polyspace.data.feature_store import FeatureStore
    from polyspace.data.index_writer import IndexWriter
    from polyspace.data.records import ClipRecord
    from polyspace.data.sampling import Sampling
    from polyspace.report.phase_sections import read_lines
    from polyspace.utils.plan import Plan
    from polyspace.utils.trackers import RunLog

    if hit.name == "unreadable.json":
        plan = Plan(4, 16, (16, 16), (0.0,) * 3, (1.0,) * 3)
        clips = FileClips([ClipRecord("b", folder / "b", 0, "b")] * 4, plan, Sampling.parse("segments"), notes=hit)
        assert all(isinstance(reason, str) for reason in clips.failed.values())
    elif hit.name == "progress.json":
        writer = IndexWriter(folder / "index", PROGRESS["made_from"], False, 5)
        writer.folder.mkdir(parents=True)
        (writer.folder / "vectors.npy").touch()
        shutil.copyfile(hit, writer.partial / "progress.json")
        found = writer.open()
        writer.close()
        assert not found or found["rows_done"] >= 0 <= len(found["sha256"])
    elif hit.name == "metrics.jsonl":
        read_lines(hit)
        RunLog(folder, 1)
    else:
        video_paths(FeatureStore(folder / "features_x_train.json"))


TENSORS = ("json", "safetensors")
SAVED: dict[str, Reader] = {
    "feature_store": Reader(taken("features"), read_store, TENSORS, seal),
    "index": Reader(taken("indexes"), read_index, ("json", "npy"), seal),
    "bundle": Reader(taken("bundle"), read_bundle, TENSORS, seal),
    "gather": Reader(taken("converters", "tokens", "fusion", "outputs"), read_gathered, ("json", "pt")),
    "report": Reader(make_report, read_report, ("json", "jsonl", "safetensors"), rare=12, seconds=90.0),
    "run": Reader(taken("outputs"), read_run, ("json", "jsonl", "safetensors"), seal, rare=4, seconds=90.0),
    "looks": Reader(taken("outputs/pretrain/looks.safetensors"), read_looks, ("safetensors",)),
    "encoder": Reader(taken("outputs/pretrain"), read_encoder_folder, TENSORS, seal),
    "backbone": Reader(make_backbones, read_backbone, TENSORS, seal),
    "training": Reader(make_training, read_training, ("json", "safetensors", "pt", "txt"), seal),
    "config": Reader(make_configs, read_config_file, ("yaml", "json", "txt")),
    "lists": Reader(make_lists, read_list, ("json", "jsonl")),
}
