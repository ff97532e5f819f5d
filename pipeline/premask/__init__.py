"""premask: chat data for supervised fine-tuning, prepared once, offline."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from premask.errors import DataError, MachineError, PremaskError, UsageError

if TYPE_CHECKING:
    from premask.feed.collate import PackCollator
    from premask.prepare import prepare
    from premask.recipe import Recipe
    from premask.store.reader import Prepared
    from premask.store.reader import open_prepared as open

    __version__: str

__all__ = [
    "DataError",
    "MachineError",
    "PackCollator",
    "PremaskError",
    "Prepared",
    "Recipe",
    "UsageError",
    "__version__",
    "open",
    "prepare",
]

_HOMES = {
    "PackCollator": ("premask.feed.collate", "PackCollator"),
    "Prepared": ("premask.store.reader", "Prepared"),
    "Recipe": ("premask.recipe", "Recipe"),
    "open": ("premask.store.reader", "open_prepared"),
    "prepare": ("premask.prepare", "prepare"),
}
"""Where the names live that are loaded when they are first used: `import premask` alone costs next to nothing."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        value: Any = version("premask")
    elif name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(importlib.import_module(module), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The import system binds every submodule in its package; a public name wins over the submodule of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, _HOMES[name][1])
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
