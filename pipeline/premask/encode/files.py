"""A tokenizer's files, read without transformers: a folder or a Hub name in, bytes, templates and special tokens out.

Everything resolves as transformers 5 resolves it (`PreTrainedTokenizerBase.from_pretrained`), which the tests compare:

- chat templates: `chat_template.jinja` and `additional_chat_templates/*.jinja` hide what `tokenizer_config.json` says
  (one template, or a list of named ones). `chat_template.json` is read by transformers' processors only; here it is the
  last resort, because several vision-language checkpoints keep their template nowhere else.
- special tokens: `tokenizer_config.json`; `special_tokens_map.json` goes over it, but only in old checkpoints, which
  have no `added_tokens_decoder` in their config.

transformers also adds to the tokenizer whatever special token the configuration names and `tokenizer.json` lacks. That
would change ids behind our back, so such a folder is refused; one `save_pretrained` makes it whole.

Cost: every file is read and hashed once; `tokenizer.json` is parsed once a process by orjson (0.1 s for 10 MB).
"""

import functools
import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from premask.errors import UsageError

MAX_BYTES = 512 * 2**20
"""No tokenizer has larger files, taken together (the largest known `tokenizer.json` is under 64 MB)."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers knows by name; any other key ending in `_token` is a model's own."""

HUB_PATTERNS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
]
"""All that is ever fetched from the Hub: data, never code or weights."""

SAVE_AGAIN = (
    'Save it once with transformers, in Python: `AutoTokenizer.from_pretrained("{source}").save_pretrained("DIR")`, '
    "then pass DIR."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What premask knows of a tokenizer before it loads it."""

    name: str
    """The folder or Hub name as it was given."""

    folder: Path
    """Where the files are: the folder itself, or the snapshot in the Hub cache."""

    tokenizer_json: bytes
    """`tokenizer.json` as it stands on disk, known to be a JSON object."""

    config: dict[str, Any]
    """`tokenizer_config.json`; empty where there is none."""

    chat_template: str | None
    """The default template: `templates["default"]`, or None."""

    templates: dict[str, str]
    """Every template by name. transformers takes `tool_use`, where there is one, for conversations with tools."""

    special_tokens: dict[str, str]
    """Name to text (`{"eos_token": "<|im_end|>", ...}`): the variables that transformers gives to every template."""

    eos_ids: tuple[int, ...]
    """Ids that end generation: those of `generation_config.json`, then the one of `eos_token`; no id twice."""

    digests: dict[str, str]
    """File name to SHA-256 (hex) of every file that was used."""


def load_tokenizer_files(name: str) -> TokenizerFiles:
    """Read the tokenizer called `name`: a folder, or a Hub name `ORG/NAME` (from the cache, or fetched).

    Raises UsageError where there is no such folder or repository, no `tokenizer.json`, or a file that is broken.
    """
    files = _Folder(_resolve(name), name)
    raw = files.read("tokenizer.json")
    if raw is None:
        raise UsageError(_no_tokenizer_json(files.path, name))
    tokenizer = _parse(raw, files.path / "tokenizer.json")
    config = files.json("tokenizer_config.json") or {}
    templates = _templates(files, config)
    legacy = {} if "added_tokens_decoder" in config else files.json("special_tokens_map.json") or {}
    named = _special_tokens(config | legacy, tokenizer, files.path / "tokenizer_config.json")
    _require_tokens(tokenizer, [*named.values(), *_declared_tokens(config | legacy)], files)
    return TokenizerFiles(
        name=name,
        folder=files.path,
        tokenizer_json=raw,
        config=config,
        chat_template=templates.get("default"),
        templates=templates,
        special_tokens=named,
        eos_ids=_eos_ids(files, named.get("eos_token"), tokenizer),
        digests=files.digests,
    )


class _Folder:
    """Reads files of one folder, each at most once, and remembers their SHA-256."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.digests: dict[str, str] = {}
        self.left = MAX_BYTES

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end, nor would a device
                raise UsageError(f"{path}: cannot be read (it is no file). Make it a readable file or remove it.")
            with path.open("rb") as file:
                raw = file.read(self.left + 1)
            if len(raw) > self.left:
                raise UsageError(
                    f"{path}: expected a tokenizer file of at most {self.left // 2**20} MB, found more. "
                    "This is probably not a tokenizer file; point --tokenizer at the folder that holds the tokenizer."
                )
            self.left -= len(raw)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be read ({error.strerror}). Make it a readable file or remove it."
            ) from None
        self.digests[name] = hashlib.sha256(raw).hexdigest()
        return raw

    def json(self, name: str) -> dict[str, Any] | None:
        raw = self.read(name)
        return None if raw is None else _parse(raw, self.path / name)

    def text(self, name: str) -> str | None:
        raw = self.read(name)
        if raw is None:
            return None
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{self.path / name}: byte {error.start}"
            raise UsageError(f"{where}: expected UTF-8, found {error.reason}. Save the file as UTF-8.") from None
        return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python's text mode, through which transformers reads


@functools.lru_cache(maxsize=8)  # a tokenizer has five such files at the most
def parsed(raw: bytes) -> Any:
    """The JSON of a tokenizer's file, the same object for the same bytes: not to be changed."""
    return orjson.loads(raw)


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    if raw.startswith(b"version https://git-lfs"):
        raise UsageError(f"{path}: expected JSON, found a Git LFS pointer. Fetch the file itself: `git lfs pull`.")
    try:
        value = parsed(raw)
    except orjson.JSONDecodeError as error:
        raise UsageError(
            f"{path}: line {error.lineno}, column {error.colno}: expected JSON, found: {error.msg}. "
            "The file is damaged or half written: fetch or save it again."
        ) from None
    if not isinstance(value, dict):
        raise UsageError(
            f"{path}: expected a JSON object, found {type(value).__name__}. Fetch the file or save it again."
        )
    return value


def _resolve(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"--tokenizer {name}: expected a folder, found a file. Give the folder: {path.parent}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return _from_hub(name)
    raise UsageError(
        f"--tokenizer {name}: no such folder, and not a Hub name either (ORG/NAME). "
        "Give the folder that holds tokenizer.json, or a name such as Qwen/Qwen3-8B."
    )


def _from_hub(name: str) -> Path:
    """Ask the Hub first, so that the same name gives the same files on every machine; without a network, the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except GatedRepoError:
        remedy = "the repository is gated. Ask for access on its page, then run `hf auth login`."
    except RepositoryNotFoundError:
        remedy = "no such folder, and no such repository on the Hub (or it is private: run `hf auth login`)."
    except Exception as error:  # its HTTP library, and with it the network's errors, differ from version to version
        reason = str(error).strip().split("\n")[0]
        remedy = (
            f"no such folder; not wholly in the Hub cache, and the Hub could not be asked ({reason}). "
            "Connect once, or copy the tokenizer's folder here and pass its path."
        )
    raise UsageError(f"--tokenizer {name}: {remedy}")


def _no_tokenizer_json(folder: Path, name: str) -> str:
    found = sorted(path.name for path in folder.iterdir())
    others = [file for file in found if file in ("tekken.json", "vocab.json") or file.endswith((".model", ".tiktoken"))]
    where, again = f"{folder}: expected tokenizer.json", SAVE_AGAIN.format(source=name)
    if others:
        return f"{where}, found only {', '.join(others)}. {again}"
    if not Path(name).expanduser().is_dir():
        return f"{where}, found none in the repository. If it holds only tokenizer.model or tekken.json: {again}"
    if "adapter_config.json" in found:
        return f"{where}, found a LoRA adapter without one. Give the folder or Hub name of its base model."
    listing = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "") if found else "an empty folder"
    return f"{where}, found {listing}. Give the folder or Hub name of a model or tokenizer."


def _templates(files: _Folder, config: Mapping[str, Any]) -> dict[str, str]:
    """Every chat template by name; template files hide the config's, all of them."""
    found = {"default": files.text("chat_template.jinja")}
    for path in sorted((files.path / "additional_chat_templates").glob("*.jinja")):
        found[path.name.removesuffix(".jinja")] = files.text(f"additional_chat_templates/{path.name}")
    templates = {name: text for name, text in found.items() if text is not None}
    if templates:
        return templates
    where, declared = "tokenizer_config.json", config.get("chat_template")
    if declared is None:
        where = "chat_template.json"
        declared = (files.json(where) or {}).get("chat_template")
    return _declared_templates(declared, files.path / where)


def _declared_templates(declared: Any, path: Path) -> dict[str, str]:
    """The value of a `chat_template` key: nothing, a string, a list of {name, template}, or a mapping of names."""
    if declared is None:
        return {}
    if isinstance(declared, str):
        return {"default": declared}
    if isinstance(declared, list) and all(isinstance(item, dict) for item in declared):
        declared = {item.get("name"): item.get("template") for item in declared}
    if isinstance(declared, dict) and all(isinstance(text, str) for pair in declared.items() for text in pair):
        return declared
    raise UsageError(
        f"{path}: chat_template: expected a string or a list of {{name, template}} objects, "
        f"found {type(declared).__name__}. Give the template as a file: --template FILE.jinja"
    )


def _special_tokens(config: Mapping[str, Any], tokenizer: Mapping[str, Any], path: Path) -> dict[str, str]:
    """What `PreTrainedTokenizerBase.special_tokens_map` holds: the named tokens, and a model's own `*_token` keys."""
    own = dict(config.get("model_specific_special_tokens") or {})
    if isinstance(config.get("extra_special_tokens"), dict):
        own |= config["extra_special_tokens"]
    found: dict[str, str] = {}
    for key, value in {**config, **own}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and (key.endswith("_token") or key in own):
            found[key] = text
        elif value is not None and (key in NAMED_TOKENS or key in own):
            expected = "expected a string or an object with a string `content`"
            raise UsageError(
                f"{path}: {key}: {expected}, found {type(value).__name__}. {SAVE_AGAIN.format(source=path.parent)}"
            )
    padding = tokenizer.get("padding")
    if "pad_token" not in config and isinstance(padding, dict) and isinstance(padding.get("pad_token"), str):
        found["pad_token"] = padding["pad_token"]
    return found


def _declared_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """Tokens that the configuration has transformers add, besides the named ones."""
    lists = [config.get("extra_special_tokens"), config.get("additional_special_tokens")]
    for token in [item for value in lists if isinstance(value, list) for item in value]:
        yield token["content"] if isinstance(token, dict) else token
    for token in (config.get("added_tokens_decoder") or {}).values():
        yield token["content"]


def _require_tokens(tokenizer: Mapping[str, Any], tokens: list[str], files: _Folder) -> None:
    present = {token.get("content") for token in tokenizer.get("added_tokens") or []}
    missing = sorted({token for token in tokens if token not in present})
    if missing:
        raise UsageError(
            f"{files.path}: tokenizer.json and tokenizer_config.json disagree: the configuration names "
            f"{', '.join(map(repr, missing[:5]))}{' ...' if len(missing) > 5 else ''}, "
            "which tokenizer.json lacks among its added tokens; transformers would add what is missing. "
            f"{SAVE_AGAIN.format(source=files.name)}"
        )


def _eos_ids(files: _Folder, eos_token: str | None, tokenizer: Mapping[str, Any]) -> tuple[int, ...]:
    declared = (files.json("generation_config.json") or {}).get("eos_token_id")
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(item, int) for item in ids):
        where = files.path / "generation_config.json"
        raise UsageError(f"{where}: eos_token_id: expected a number or a list of numbers, found {declared!r}. Fix it.")
    of_token = [token["id"] for token in tokenizer.get("added_tokens") or [] if token["content"] == eos_token]
    return tuple(dict.fromkeys([*ids, *of_token]))
