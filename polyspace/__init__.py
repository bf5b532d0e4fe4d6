"""PolySpace: video encoders that choose their own tokens, and one student that serves many feature spaces.

Importing the package imports neither torch nor transformers; submodules do when they are used.
"""

from polyspace.version import __version__

__all__ = ["__version__"]
