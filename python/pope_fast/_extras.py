"""Optional dependencies: what is missing is said with the command that installs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pope_fast.errors import PopeError

__all__ = ["require"]

#: Module -> the extra of this package that brings it.
_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "accelerate": "torch",
    "peft": "torch",
    "datasets": "align",
    "yaml": "align",
    "sklearn": "themes",
    "sentence_transformers": "embeddings",
    "matplotlib": "plot",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Parameters
    ----------
    module : str
        Its name, as imported; dots allowed.
    purpose : str
        What needs it, for the error: "scoring with a model".

    Raises
    ------
    PopeError
        If it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        extra = _EXTRAS.get(root)
        how = f"pip install 'pope_fast[{extra}]'" if extra else f"pip install {root}"
        raise PopeError(f"{purpose} needs {root}, which cannot be imported ({error}). Remedy: {how}.") from error
