"""What bench/kills.py kills: every long command on a small library, as lines whose results go to the working folder."""

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A command line, typed in an empty folder. `loose`: files (patterns) that hold times by contract."""

    name: str
    line: str
    loose: tuple[str, ...] = ()


def make_library(base: Path) -> Path:
    """All that the lines read: what the tests' library holds, videos in folders, and a large array of vectors."""
    sys.path.append(str(REPOSITORY / "tests"))
    import library
    from conftest import save_small

    checkpoints = {name: save_small(name, base / "checkpoints" / name) for name in ("videomae", "vivit")}
    place = library.build(base / "library", checkpoints)
    for clip in sorted((place / "data").glob("turn_*/*.avi"))[:24]:
        (base / "videos" / clip.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, base / "videos" / clip.parent.name / clip.name)
    np.save(base / "vectors.npy", np.random.default_rng(0).standard_normal((400_000, 32), np.float32))
    return place


def training(base: Path, phase: str, **changes: str) -> Case:
    """main.py with one phase, in many small steps with a checkpoint every few."""
    import library

    parts = {part: dict(item.split("=") for item in items.split()) for part, items in library.PHASES.items()}
    parts[phase] |= {"save_every": "3", "log_every": "1", "steps": "40"} | changes
    kept = {"data", "encoder", phase} if phase == "pretrain" else {"data", phase}
    sets = [f"--set {part}.{key}={value}" for part in sorted(kept) for key, value in parts[part].items()]
    start = "" if phase == "pretrain" else f"--init_from {base}/library/outputs "
    # the page shows when it was made and how long phases took
    return Case(f"train {phase}", f"train --work_dir out --sequence {phase} {start}{' '.join(sets)}", ("*.html",))


def cases(base: Path) -> list[Case]:
    """Every long command. Paths to read are absolute; what is written lies in the folder that the line is typed in."""
    made, small = base / "library", base / "checkpoints"
    places = f"hnet_vjepa={made}/outputs videomae={small}/videomae vivit={small}/vivit"
    backbones = f"--student hnet_vjepa --teachers vivit videomae --checkpoint {places} --frames 6"
    source = f"--dataset hmdb51 --root {made}/data {backbones} --workers 2"
    store = f"{made}/features/features_hmdb51_train.json"
    bank, fusion = f"{made}/converters/converters_ep2.pt", f"{made}/fusion/fusion_ep2.pt"
    clip = shlex.quote(str(sorted((made / "data").rglob("*.avi"))[0]))
    demo = ("*.html", "*eval_*.md", "*eval_*.png", "*labels_curve*.md", "*/cost*.png")
    return [
        Case("synth", "synth --layout hmdb51 --out out --clips 400 --classes 4 --height 48 --width 48 --frames 17"),
        Case("featurize", f"featurize {source} --split train --out out --tokens"),
        Case("train-converter", f"train-converter --features {store} --teachers vivit videomae --epochs 60 --batch 8 "
             "--save_dir out"),
        Case("export-index", f"export-index --features {store} --space videomae --out out"),
        Case("convert-index", f"convert-index --index {base}/vectors.npy --converters {bank} --space videomae "
             "--rows 4096 --out out"),
        Case("train-fusion", f"train-fusion {source} --split train --features {made}/features --converters {bank} "
             "--epochs 30 --classes 4 --save_dir out"),
        Case("eval", f"eval {source} --split validation --features out/features --converters {bank} --fusion {fusion} "
             "--no-latency --out out"),
        training(base, "pretrain"),
        training(base, "language"),
        training(base, "probe"),
        training(base, "action"),
        Case("main.py", training(base, "pretrain").line.replace("--sequence pretrain", "--sequence pretrain,language")
             + " --set language.steps=20 --set language.save_every=3 --set language.clips=16 --set language.batch=8 "
             "--set language.held_out=8 --set language.dim=16", ("*.html",)),
        Case("fit", f"fit --data {base}/videos --out out --steps 12 --preset tiny --workers 2", ("*.html",)),
        Case("collect", "collect --out out/pusht.safetensors --episodes 60 --steps 6 --size 32"),
        Case("bundle", f"bundle --converters {bank} --fusion {fusion} --run {made}/outputs --out out"),
        Case("export", f"export --bundle {made}/bundle --out out"),
        Case("labels-curve", f"labels-curve {source} --split validation --features {made}/features --converters {bank} "
             "--fractions 0.5 1.0 --seeds 2 --epochs 3 --out out"),
        Case("index", f"index --bundle {made}/bundle --videos {base}/videos --space videomae --out out"),
        Case("report", f"report {made} --out out/page.html"),
        Case("overlay", f"overlay {clip} --run {made}/bundle -o out/overlay.mp4 --height 360"),
        Case("demo", "demo --out out --classes 2 --clips 10 --epochs 2 --language_steps 6 --curve_seeds 2", demo),
    ]  # fmt: skip
