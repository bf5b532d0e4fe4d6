"""PolySpace: video encoders that choose their own tokens, and one student that serves many feature spaces.

Importing the package imports neither torch nor transformers; submodules do when they are used.
"""

from typing import TYPE_CHECKING, Any

from polyspace.version import __version__

if TYPE_CHECKING:
    from polyspace.api import PolySpace

__all__ = ["PolySpace", "__version__", "load"]


def load(folder: Any, **options: Any) -> "PolySpace":
    """A bundle, or a run of main.py, ready to use; see `polyspace.api.load`."""
    from polyspace.api import load as load_now

    return load_now(folder, **options)


def __getattr__(name: str) -> Any:
    if name == "PolySpace":
        from polyspace.api import PolySpace

        return PolySpace
    raise AttributeError(f"module 'polyspace' has no attribute {name!r}")
