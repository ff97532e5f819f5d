"""The masker of a recipe and a tokenizer: built once a process, and only where template and tokenizer go together."""

import functools
import hashlib
import re
from typing import Any

import orjson

from premask.clock import stage as clocked
from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import DataError, UsageError
from premask.mask.controls import Vocabulary, classify
from premask.mask.masker import Masker
from premask.recipe import Recipe
from premask.render.named import resolve_templates


@functools.lru_cache(maxsize=8)
def masker_for(recipe: str, tokenizer: str, templating: str) -> Masker:
    """The masker of a recipe, kept by the process, since its traced paths are worth keeping.

    `recipe` and `templating` are JSON. DataError where template or tokenizer are not what the run began with.
    """
    chosen, files = Recipe(**orjson.loads(recipe)), load_tokenizer_files(tokenizer)
    if templating_of(chosen, files) != orjson.loads(templating):
        raise DataError(
            f"{tokenizer}: expected a tokenizer and a chat template that stay as they are while they are used, "
            "found that they changed; run again when nothing writes to them"
        )
    with clocked("set-up"):
        return build_masker(chosen, files)


def masker_of(recipe: Recipe, files: TokenizerFiles) -> Masker:
    """The masker of a recipe, the very one that this process will use for its partitions."""
    templating = templating_of(recipe, files)
    return masker_for(orjson.dumps(recipe.resolved()).decode(), str(files.folder), orjson.dumps(templating).decode())


def templating_of(recipe: Recipe, files: TokenizerFiles) -> dict[str, Any]:
    """SHA-256 of the template (or of both), and of every tokenizer file by name."""
    templates = resolve_templates(recipe.template, files.templates)
    return {"template": hashlib.sha256(templates.source.encode()).hexdigest(), "tokenizer": dict(files.digests)}


def build_masker(recipe: Recipe, files: TokenizerFiles) -> Masker:
    """The masker of a recipe and a tokenizer. Raises UsageError where they do not go together."""
    templates = resolve_templates(recipe.template, files.templates)
    encoder = Encoder(files.tokenizer_json)
    if recipe.mask == "generation" and not re.search(r"\{%-?\s*generation\b", templates.source):
        raise UsageError(
            "mask=generation: expected a template with {% generation %} tags, found none; "
            "leave the option out, or give such a template with --template"
        )
    masker = Masker(
        template=templates.default,
        variables={**files.special_tokens, **recipe.template_args},
        date=recipe.date,
        encoder=encoder,
        vocabulary=vocabulary(recipe, files, encoder, templates.source),
        choices=recipe,
        tool_template=templates.tool_use,
    )
    bos = files.special_tokens.get("bos_token")
    grammars = [made.grammar for made in (masker, masker.with_tools) if made is not None]
    for probes in (probes for grammar in grammars for probes in grammar.probes.values()):
        if bos and probes[0].text.startswith(bos + bos):
            raise UsageError(f"the template begins every conversation with {bos} twice; mend the template")
    return masker


def vocabulary(recipe: Recipe, files: TokenizerFiles, encoder: Encoder, template: str) -> Vocabulary:
    """Control tokens, tags and stop tokens of a tokenizer under a template."""
    by_id = {token.id: token.content for token in encoder.added}
    known = {token.content for token in encoder.added}
    for token in recipe.stop_tokens:
        if token not in known:
            raise UsageError(
                f"stop_tokens: expected added tokens of {files.name}, found {token!r}; "
                f"it has {', '.join(sorted(t.content for t in encoder.added if t.special))}"
            )
    stops = {by_id[i] for i in files.eos_ids if i in by_id} | set(recipe.stop_tokens)
    return classify(encoder.added, template, frozenset(stops))
