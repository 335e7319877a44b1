"""Pluralistic off-policy evaluation: what another model would have earned on these prompts, and for whom.

The pipeline has five verbs; each is a function here and a command of ``pope``::

    log -> validate -> evaluate -> compare

>>> import pope_fast as pope
>>> evaluation = pope.evaluate(pope.demo_log(), diversity_weight=0.5)
>>> evaluation["near"].verdict.level
'reliable'
>>> evaluation["far"].verdict.level
'unreliable'
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pope_fast import align, ope, simulate
    from pope_fast.data import demo_log
    from pope_fast.errors import OverlapError, PopeError, PopeWarning, SchemaError, StateError
    from pope_fast.evaluate import Evaluation, PolicyValue, evaluate
    from pope_fast.log import FeedbackLog, ValidationReport, read_log, validate

    __version__: str

# Public names by the module that has them, imported when first used: `import pope_fast` alone costs nothing.
_WHERE = {
    "Evaluation": "pope_fast.evaluate",
    "FeedbackLog": "pope_fast.log",
    "OverlapError": "pope_fast.errors",
    "PolicyValue": "pope_fast.evaluate",
    "PopeError": "pope_fast.errors",
    "PopeWarning": "pope_fast.errors",
    "SchemaError": "pope_fast.errors",
    "StateError": "pope_fast.errors",
    "ValidationReport": "pope_fast.log",
    "demo_log": "pope_fast.data",
    "read_log": "pope_fast.log",
    "validate": "pope_fast.log",
}
_MODULES = ("align", "ope", "simulate")

__all__ = [
    "Evaluation",
    "FeedbackLog",
    "OverlapError",
    "PolicyValue",
    "PopeError",
    "PopeWarning",
    "SchemaError",
    "StateError",
    "ValidationReport",
    "__version__",
    "align",
    "demo_log",
    "evaluate",
    "ope",
    "read_log",
    "simulate",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("pope_fast._core").build_info()["version"]
    if name in _MODULES:
        return import_module(f"pope_fast.{name}")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _verb(name: str) -> property:
    """Return the function of a verb for the attribute that its sub-package of the same name would take."""

    def get(self: ModuleType) -> Any:
        return getattr(import_module(f"pope_fast.{name}"), name)

    def ignore(self: ModuleType, module: ModuleType) -> None:
        pass

    return property(get, ignore)


class _Package(ModuleType):
    """Keeps ``pope_fast.evaluate`` the function, although a sub-package has the same name; so for each such verb.

    The import system binds a sub-package to its parent when it is first imported; here that binding is dropped.
    """

    evaluate = _verb("evaluate")


sys.modules[__name__].__class__ = _Package
