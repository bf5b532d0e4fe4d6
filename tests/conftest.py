"""Shared fixtures. Shapes in our signatures are checked at run time in every test (Python < 3.15)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from jaxtyping import install_import_hook

if sys.version_info < (3, 15):  # jaxtyping 0.3.11's hook gives importlib an argument that 3.15 has dropped
    _HOOK = install_import_hook("polyspace", "typecheck.check")

import hypothesis
import pytest
import torch

# the same examples in every run, few enough for a test that is run often; a busy machine is no failure
hypothesis.settings.register_profile(
    "here",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "many", hypothesis.settings.get_profile("here"), derandomize=False, max_examples=500
)
hypothesis.settings.load_profile("here")  # --hypothesis-profile many looks further

REPOSITORY = Path(__file__).parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SIDE, PATCH, WIDTH = 32, 16, 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What breaks things takes minutes, so it has a run of its own: `make test-breaking`."""
    for item in items:
        if REPOSITORY / "tests" / "breaking" in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real files, or a skip with the reason."""
    folder = Path(os.environ.get("POLYSPACE_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set POLYSPACE_REAL_DATA)")
    return folder


def small_config(name: str):
    """A transformers config of each architecture, as small as it goes."""
    import transformers

    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH}
    if name == "vjepa2":
        return transformers.VJEPA2Config(
            **shape,
            crop_size=SIDE,
            frames_per_clip=4,
            mlp_ratio=2,
            pred_hidden_size=12,
            pred_num_hidden_layers=1,
            pred_num_attention_heads=2,
        )
    shape |= {"intermediate_size": 2 * WIDTH, "image_size": SIDE}
    if name == "videomae":
        return transformers.VideoMAEConfig(**shape, num_frames=4, use_mean_pooling=False)
    if name == "timesformer":
        return transformers.TimesformerConfig(**shape, num_frames=3)
    return transformers.VivitConfig(**shape, num_frames=6, tubelet_size=[2, PATCH, PATCH])


MODELS = {
    "vjepa2": "VJEPA2Model",
    "videomae": "VideoMAEModel",
    "timesformer": "TimesformerModel",
    "vivit": "VivitModel",
}


def save_small(name: str, folder: Path, preprocessor: dict | None = None, model=None) -> Path:
    """A random checkpoint folder of one architecture."""
    import transformers

    torch.manual_seed(len(name))
    model = model if model is not None else getattr(transformers, MODELS[name])(small_config(name))
    model.save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Random checkpoints of the four architectures: {name: folder}."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {name: save_small(name, base / name) for name in MODELS}


def run(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a typed command line (python … or polyspace …) in `cwd`."""
    words = line.split()
    start = {"python": [sys.executable], "polyspace": [sys.executable, "-m", "polyspace.cli"]}[words[0]]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*start, *words[1:]], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def run_ok(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    done = run(line, cwd, **environment)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done


def run_fails(line: str, cwd: Path, *words: str, **environment: str) -> str:
    """The command must stop with one sentence that holds all `words`, exit ≠ 0, and no traceback."""
    done = run(line, cwd, **environment)
    assert done.returncode != 0, f"{line} should have failed\n{done.stdout}"
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("error: ", "warning: ")), done.stderr
    for word in words:
        assert word in last, f"{word!r} not in {last!r}"
    return last


@pytest.fixture(scope="session")
def made(tmp_path_factory, checkpoints) -> Path:
    """The folder of `library.build`: a run, a store, converters, heads, an evaluation, an index, a bundle."""
    from library import build

    return build(tmp_path_factory.mktemp("whole"), checkpoints)


@pytest.fixture(scope="session")
def ps(made):
    import polyspace

    return polyspace.load(made / "bundle", device="cpu")


@pytest.fixture(scope="session")
def clip(made) -> Path:
    return sorted((made / "data").rglob("*.avi"))[0]


@pytest.fixture(scope="session")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1300,1000")
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Small runs of the commands that write folders (tests/breaking)."""
    from small_runs import make

    return make(tmp_path_factory.mktemp("small_runs"))


@pytest.fixture
def disk(tmp_path):
    """A file system to be mounted (tests/breaking)."""
    from disks import Disk

    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()
