"""Where the small backbones lie that come with the package, and which of them are teachers."""

from importlib import resources
from pathlib import Path

from polyspace.utils.errors import UserError

STUDENTS = ("hnet_vjepa", "vjepa2")
TEACHERS = ("videomae", "timesformer", "vivit")


def assets() -> Path:
    """The folder of the small backbones. UserError where the package came without."""
    folder = Path(str(resources.files("polyspace") / "assets" / "backbones"))
    if not folder.is_dir():
        raise UserError(
            f"the small backbones are not at {folder}; make them with polyspace make-backbones --out {folder}"
        )
    return folder
