"""The chain on real HMDB51 clips with the four architectures at their published sizes (random weights: plumbing)."""

import json

import pytest
import torch
from conftest import MODELS, run_ok

from polyspace.data.feature_store import FeatureStore

GIGAFLOPS = {"vjepa2": 1656, "videomae": 361, "timesformer": 392, "vivit": 903}


@pytest.mark.slow
def test_published_sizes_run_end_to_end_on_real_clips(real_data, tmp_path):
    import transformers

    for name, kind in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, kind.replace("Model", "Config"))()
        getattr(transformers, kind)(config).save_pretrained(tmp_path / name)
    splits = real_data / "hmdb51_full_splits" / "testTrainMulti_7030_splits"
    places = " ".join(f"{name}={tmp_path / name}" for name in MODELS)
    source = (
        f"--dataset hmdb51 --root {real_data}/hmdb51 --annotations {splits} --student vjepa2 "
        f"--teachers videomae timesformer vivit --checkpoint {places} --strict"
    )
    run_ok(f"python -m polyspace.data.featurize {source} --split train --out f --batch 1 --frames 16", tmp_path)
    store = FeatureStore(tmp_path / "f" / "features_hmdb51_train.json")
    assert {n: tuple(store.features(n).shape) for n in MODELS} == {
        "vjepa2": (3, 1024),
        "videomae": (3, 768),
        "timesformer": (3, 768),
        "vivit": (3, 768),
    }
    assert store.labels().tolist() == [15, 35, 50] and len(store.manifest["missing"]) == 3567
    # two clips of a class are needed to hold one out, which these five real clips can't give: one label for all
    (tmp_path / "list.csv").write_text(
        "path,label,split\n"
        + "".join(
            f"{p.relative_to(real_data / 'hmdb51')},{'waves' if 'wave' in p.name else 'other'},{s}\n"
            for p in sorted((real_data / "hmdb51").glob("*/*.avi"))
            for s in ("train",)
        )
    )
    source = source.replace(f"--annotations {splits}", "--list list.csv").replace(
        "--dataset hmdb51", "--dataset videofolder"
    )
    run_ok(f"python -m polyspace.data.featurize {source} --split train --out f --batch 1 --frames 16", tmp_path)
    teachers = "--teachers videomae timesformer vivit"
    made = "--features f/features_videofolder_train.json --save_dir c"
    run_ok(f"python -m polyspace.train.train_converter {made} {teachers}", tmp_path)
    heads = "--converters c/converters_ep10.pt --features f --frames 16"
    run_ok(f"python -m polyspace.train.train_fusion {source} --split train {heads} --save_dir h --epochs 2", tmp_path)
    run_ok(
        f"python -m polyspace.train.eval_downstream {source} --split train {heads} --fusion h/fusion_ep2.pt "
        "--latency_budget 1 --latency_batches 1",
        tmp_path,
    )
    cost = json.loads((tmp_path / "h" / "eval_videofolder_train.json").read_text())["cost"]
    for name, expected in GIGAFLOPS.items():
        row = cost["student" if name == "vjepa2" else f"teacher {name}"]
        assert row["flops"] / 1e9 == pytest.approx(expected, rel=0.01)
