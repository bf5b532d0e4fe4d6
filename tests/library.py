"""All that the library can hold, made small by the commands that make it."""

import shlex
from pathlib import Path

from polyspace.bundle.gather import main as bundle_main
from polyspace.config import run_command
from polyspace.data import featurize, synthetic
from polyspace.train import eval_downstream, export_index, train_converter, train_fusion
from polyspace.train import run as phases

PHASES = {
    "data": "clips=12 size=24 frames=6",
    "encoder": "dim=32 depth=1 cell_dim=32",
    "pretrain": "steps=2 batch=8",
    "language": "steps=2 batch=8 clips=16 held_out=8 dim=16",
    "probe": "steps=2 batch=8 clips=16 held_out=8 control=false",
    "action": "steps=2 batch=4 width=16 depth=1 horizon=2 episodes.episodes=4 episodes.held_out=2 episodes.frames=5",
}


def build(out: Path, checkpoints: dict[str, Path]) -> Path:
    """A folder in which a run, a store, converters, token converters, fusion, an evaluation and a bundle were made."""
    sets = " ".join(f"--set {part}.{item}" for part, items in PHASES.items() for item in items.split())
    places = f"hnet_vjepa={out}/outputs videomae={checkpoints['videomae']} vivit={checkpoints['vivit']}"
    backbones = f"--student hnet_vjepa --teachers vivit videomae --checkpoint {places} --frames 6"
    source = f"--dataset hmdb51 --root {out}/data {backbones} --workers 0"
    store, bank = f"{out}/features/features_hmdb51_train.json", f"{out}/converters/converters_ep2.pt"
    lines = [
        (synthetic.main, f"--layout hmdb51 --out {out}/data --clips 40 --classes 4 --height 32 --width 32 --frames 13"),
        (phases.main, f"--work_dir {out}/outputs --sequence pretrain,language,probe,action {sets}"),
        (featurize.main, f"{source} --split train --out {out}/features --tokens"),
        (train_converter.main, f"--features {store} --teachers vivit videomae --epochs 2 --save_dir {out}/converters"),
        (train_converter.main, f"--features {store} --teachers vivit --epochs 2 --tokens --save_dir {out}/tokens"),
        (train_fusion.main, f"{source} --split train --features {out}/features --converters {bank} --epochs 2 "
         f"--classes 4 --save_dir {out}/fusion --no-controls"),
        (eval_downstream.main, f"{source} --split validation --features {out}/features --converters {bank} "
         f"--fusion {out}/fusion/fusion_ep2.pt --no-latency"),
        (export_index.main, f"--features {store} --space videomae --out {out}/indexes/videomae"),
        (bundle_main, f"--converters {bank} --tokens {out}/tokens/converters_ep2.pt "
         f"--fusion {out}/fusion/fusion_ep2.pt --run {out}/outputs "
         f"--evaluation {out}/fusion/eval_hmdb51_validation.json --out {out}/bundle"),
    ]  # fmt: skip
    for main, line in lines:
        assert run_command(main, shlex.split(line)) == 0, line
    return out
