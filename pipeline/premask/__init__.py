"""premask: chat data for supervised fine-tuning, prepared once, offline.

    prepare(Recipe(sources=[...], tokenizer=...), "prepared")   sources to a prepared dataset
    open("prepared")["train"][0]                                its packs, as numpy views
    open("prepared").loader(batch_size=16)                      its packs, as torch tensors for any training loop
    PackCollator()                                              its packs, for trainers of Hugging Face
    train_on_responses_only(trainer)                            masks rows that are tokenized already, by markers

`ResponseOnlyCollator` does the last at batch time, `mask_responses` on flat arrays with the markers of `find_markers`;
`get_chat_template` puts a named template on a tokenizer. All that is raised on purpose is a `PremaskError`.
Names are imported when they are first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from premask.errors import DataError, MachineError, PremaskError, UsageError

if TYPE_CHECKING:
    from premask.feed.collate import PackCollator
    from premask.feed.collators import ResponseOnlyCollator
    from premask.feed.drop_in import train_on_responses_only
    from premask.feed.markers import find_markers
    from premask.feed.named_templates import get_chat_template
    from premask.mask.responses import mask_responses
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
    "ResponseOnlyCollator",
    "UsageError",
    "__version__",
    "find_markers",
    "get_chat_template",
    "mask_responses",
    "open",
    "prepare",
    "train_on_responses_only",
]

_HOMES = {
    "PackCollator": ("premask.feed.collate", "PackCollator"),
    "Prepared": ("premask.store.reader", "Prepared"),
    "Recipe": ("premask.recipe", "Recipe"),
    "ResponseOnlyCollator": ("premask.feed.collators", "ResponseOnlyCollator"),
    "find_markers": ("premask.feed.markers", "find_markers"),
    "get_chat_template": ("premask.feed.named_templates", "get_chat_template"),
    "mask_responses": ("premask.mask.responses", "mask_responses"),
    "open": ("premask.store.reader", "open_prepared"),
    "prepare": ("premask.prepare", "prepare"),
    "train_on_responses_only": ("premask.feed.drop_in", "train_on_responses_only"),
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
