"""premask's named chat templates on a tokenizer of transformers."""

from typing import Any

from premask.errors import UsageError
from premask.feed.markers import inner
from premask.render.named import TEMPLATE_NAMES, named_template

ALIKE = dict.fromkeys(("llama3", "llama-3.1", "llama-31", "llama3.1", "llama-3.2", "llama-3.3"), "llama-3")
"""Names under which Unsloth has a layout of ours. Those of Llama 3.1 and later also invent a system message that says
what day it is; ours does not.
"""

WRITTEN = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""The tokens that a named template writes, besides BOS and EOS."""


def get_chat_template(tokenizer: Any, chat_template: str = "chatml") -> Any:
    """Put one of premask's named templates on a tokenizer (or a processor), and return it.

    The tokenizer's ids stay as they are. Raises UsageError where there is no such template, or where the tokenizer
    lacks a token that it writes: as plain text, a model would have to learn it from letters.
    """
    name = ALIKE.get(chat_template, chat_template)
    if name not in TEMPLATE_NAMES:
        known = ", ".join([*TEMPLATE_NAMES, *ALIKE])
        raise UsageError(f"chat_template: expected one of {known}, found {chat_template!r}.")
    own = inner(tokenizer)
    missing = [token for token in WRITTEN.get(name, ()) if token not in own.get_added_vocab()]
    if missing:
        raise UsageError(
            f"The template {name!r} writes {', '.join(missing)}, which this tokenizer does not have. Add them "
            "(`tokenizer.add_special_tokens`, then `model.resize_token_embeddings`), or take another template."
        )
    if name not in WRITTEN and not own.eos_token:
        raise UsageError(f"The template {name!r} ends each answer with eos_token, which this tokenizer does not have.")
    for holder in (own, tokenizer):
        holder.chat_template = named_template(name)
    return tokenizer
