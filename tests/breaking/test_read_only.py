"""A folder that can't be written is a sentence before any work."""

import shlex

import pytest

from polyspace.bundle.export import main as export
from polyspace.bundle.gather import main as bundle
from polyspace.commands.demo import main as demo
from polyspace.commands.index import main as index
from polyspace.commands.overlay import main as overlay
from polyspace.commands.report import main as report
from polyspace.config import run_command
from polyspace.data.featurize import main as featurize
from polyspace.data.synthetic import main as synth
from polyspace.train.collect_episodes import main as collect
from polyspace.train.convert_index import main as convert_index
from polyspace.train.export_index import main as export_index
from polyspace.train.fit_videos import main as fit
from polyspace.train.run import main as phases
from polyspace.train.train_converter import main as train_converter

LINES = [
    (synth, "--layout hmdb51 --out {out} --clips 8 --classes 2"),
    (featurize, "--dataset hmdb51 --root {base}/clips --student vjepa2 --teachers vivit --frames 4 --out {out}"),
    (train_converter, "--features {base}/store/features_hmdb51_train.json --teachers timesformer --save_dir {out}"),
    (phases, "--work_dir {out}"),
    (convert_index, "--index {base}/x.npy --converters {base}/c.pt --space t --out {out}"),
    (export_index, "--features {base}/features_x_train.json --space s --out {out}"),
    (bundle, "--run {base}/run --out {out}"),
    (export, "--bundle {base}/run --num_chunks 4 --out {out}"),
    (index, "--bundle {base}/run --videos {base}/clips --out {out}"),
    (report, "{base}/run --out {out}/page.html"),
    (overlay, "{clip} --run {base}/run -o {out}/x.mp4"),
    (collect, "--out {out}/x.safetensors --episodes 2 --steps 2"),
    (fit, "--data {base}/clips --out {out}"),
    (demo, "--out {out}"),
]


@pytest.mark.parametrize(("main", "line"), LINES, ids=lambda x: x.__module__.split(".")[-1] if callable(x) else "")
@pytest.mark.parametrize("under", ["", "/new/folder"])
def test_a_folder_that_cannot_be_written_is_a_sentence_before_any_work(
    runs, disk, capsys, monkeypatch, main, line, under
):
    disk.mount("ro")
    for work in ("data.synthetic._draw_all", "data.extract.decode_clip", "train.loop._update", "planning.collect"):
        monkeypatch.setattr(f"polyspace.{work}", lambda *_, **__: pytest.fail("work has begun"), raising=False)
    clip = sorted((runs.base / "clips").rglob("*.avi"))[0]
    words = shlex.split(line.format(out=f"{disk.place}{under}", base=runs.base, clip=clip))
    capsys.readouterr()
    assert run_command(main, words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    reason = "where a disk is mounted" if not under and "index" in main.__module__ else "Read-only file system"
    assert last.startswith("error: cannot write ") and str(disk.place) in last and reason in last
