"""Imports point down, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "polyspace"
FLOOR = {
    "utils": 0,
    "version": 0,
    "report": 1,
    "data": 1,
    "models": 1,
    "losses": 1,
    "planning": 1,
    "config": 2,
    "train": 3,
}
FLOOR |= {"bundle": 4, "api": 5, "cli": 5, "doctor": 5, "explorer": 6, "commands": 7}
# entry points that live beside the code they run, and the re-exports of utils/misc.py
ENTRY_POINTS = {"data/featurize.py": {"models", "config"}, "data/synthetic.py": {"config"}}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("polyspace.")}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def test_imports_point_down():
    faults = []
    for path in PACKAGE.rglob("*.py"):
        place, room = path.relative_to(PACKAGE).as_posix(), room_of(path)
        if room == "__init__":
            continue
        allowed = ENTRY_POINTS.get(place, set())
        for target in imports_of(path) - {room, "version"} - allowed:
            if FLOOR[target] >= FLOOR[room]:
                faults.append(f"{place} imports {target}")
    assert not faults, faults


def test_every_module_says_what_it_is_for():
    silent = [p for p in PACKAGE.rglob("*.py") if not ast.get_docstring(ast.parse(p.read_text()))]
    assert not silent


def test_importing_the_package_and_the_list_of_verbs_load_nothing_heavy():
    heavy = "{'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, polyspace, polyspace.cli as c; assert c.main(['--help']) == 0; sys.exit(' '.join({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "featurize" in done.stdout and done.stderr.strip() == ""


def test_models_see_no_losses_and_losses_no_models():
    for room, other in (("models", "losses"), ("losses", "models")):
        for path in (PACKAGE / room).rglob("*.py"):
            assert other not in imports_of(path), path


def test_planning_sees_only_utils():
    for path in (PACKAGE / "planning").rglob("*.py"):
        assert imports_of(path) <= {"planning", "utils"}, path
