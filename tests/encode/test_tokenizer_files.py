import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from premask.encode import files as module
from premask.encode.files import load_tokenizer_files
from premask.errors import UsageError

ROOT = Path(__file__).parents[2]
OURS = ROOT / "data/tokenizer"
REAL = ROOT / "../shared/data/tokenizers"


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of four ids in a folder of its own, with no configuration."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<s>", "</s>", "<img>", "<x>")])
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok/tokenizer.json"))
    return tmp_path / "tok"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(json.dumps(content))


def as_transformers(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def assert_same(folder):
    """Template and special tokens are those that transformers gives to `apply_chat_template`."""
    ours, theirs = load_tokenizer_files(str(folder)), as_transformers(folder)
    template = theirs.chat_template
    assert ours.templates == (template if isinstance(template, dict) else {"default": template} if template else {})
    assert ours.special_tokens == theirs.special_tokens_map
    assert Tokenizer.from_str(ours.tokenizer_json.decode()).get_vocab() == theirs.get_vocab()
    assert theirs.eos_token_id is None or theirs.eos_token_id in ours.eos_ids
    return ours


@pytest.mark.parametrize("path", [OURS, REAL / "dolma2", REAL / "gpt-neox"], ids=["ours", "dolma2", "gpt-neox"])
def test_real_tokenizers_resolve_as_in_transformers(path):
    if not path.is_dir():
        pytest.skip("needs ../shared/data")
    files = assert_same(path)
    assert files.chat_template
    for name, digest in files.digests.items():
        assert digest == hashlib.sha256((path / name).read_bytes()).hexdigest()


def test_our_tokenizer_is_what_the_tests_expect():
    files = load_tokenizer_files(str(OURS))
    tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
    assert tokenizer.get_vocab_size() == 4096
    special = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert special == dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"], True) | dict.fromkeys(
        ["<think>", "</think>", "<tool_call>", "</tool_call>"], False
    )
    assert files.eos_ids == (tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>"))
    text = "ʇxǝʇ, 漢字 and 123456\n\n  spaces"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    model = json.loads((ROOT / "data/tiny-llama/config.json").read_text())
    assert (model["vocab_size"], model["eos_token_id"]) == (4096, files.eos_ids[0])
    assert model["pad_token_id"] == tokenizer.token_to_id("<|pad|>")


TOKEN = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

CONFIGS = {
    "strings": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "chat_template": "t"},
    "objects": {"eos_token": TOKEN | {"content": "</s>", "special": True}, "add_bos_token": False},
    "templates by name": {
        "chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "u"}],
    },
    "no default": {"chat_template": [{"name": "rag", "template": "r"}]},
    "a model's own tokens": {"image_token": "<img>", "extra_special_tokens": {"x_token": "<x>", "other": "<s>"}},
    "extra tokens": {"additional_special_tokens": ["<img>", TOKEN | {"content": "<x>"}], "eos_token": "</s>"},
    "decoder": {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}, "eos_token": "</s>"},
    "explicit own tokens": {"model_specific_special_tokens": {"image_token": "<img>"}},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("legacy", [None, {"eos_token": {"content": "<x>", "lstrip": False}, "bos_token": "<img>"}])
def test_configurations_resolve_as_in_transformers(folder, config, legacy):
    write(folder, "tokenizer_config.json", config)
    if legacy:
        write(folder, "special_tokens_map.json", legacy)
    files = assert_same(folder)
    assert files.chat_template == files.templates.get("default")
    assert ("special_tokens_map.json" in files.digests) == (legacy is not None and "added_tokens_decoder" not in config)


def test_template_files_hide_those_of_the_config(folder):
    write(folder, "tokenizer_config.json", CONFIGS["templates by name"])
    write(folder, "chat_template.jinja", "line\r\nläne\n".encode())
    assert assert_same(folder).templates == {"default": "line\nläne\n"}
    write(folder, "additional_chat_templates/tool_use.jinja", b"from a file")
    files = assert_same(folder)
    assert files.templates == {"default": "line\nläne\n", "tool_use": "from a file"}
    assert set(files.digests) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    }
    (folder / "chat_template.jinja").unlink()
    assert assert_same(folder).chat_template is None


def test_a_processors_template_is_the_last_resort(folder):
    write(folder, "chat_template.json", {"chat_template": "legacy"})
    assert load_tokenizer_files(str(folder)).chat_template == "legacy"
    write(folder, "tokenizer_config.json", {"chat_template": "own"})
    files = load_tokenizer_files(str(folder))
    assert files.chat_template == "own"
    assert "chat_template.json" not in files.digests


def test_padding_in_the_tokenizer_names_a_pad_token(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    padding = {"pad_id": 4, "pad_token": "<x>"}
    tokenizer.enable_padding(**padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert assert_same(folder).special_tokens == {"pad_token": "<x>"}
    write(folder, "tokenizer_config.json", {"pad_token": None})
    assert assert_same(folder).special_tokens == {}


@pytest.mark.parametrize(
    ("declared", "ids"), [(None, (2,)), (7, (7, 2)), ([2, 9], (2, 9)), ([9, 2, 9], (9, 2))], ids=str
)
def test_ids_that_end_generation(folder, declared, ids):
    write(folder, "tokenizer_config.json", {"eos_token": "</s>"})
    write(folder, "generation_config.json", {"eos_token_id": declared})
    assert load_tokenizer_files(str(folder)).eos_ids == ids


def test_a_folder_of_nothing_but_tokenizer_json_is_enough(folder):
    files = load_tokenizer_files(str(folder))
    assert (files.config, files.chat_template, files.special_tokens, files.eos_ids) == ({}, None, {}, ())
    assert set(files.digests) == {"tokenizer.json"}


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(name):
    with pytest.raises(UsageError) as caught:
        load_tokenizer_files(str(name))
    return str(caught.value)


def test_missing_folder_and_file_for_a_folder(folder):
    assert "no such folder, and not a Hub name either" in refused(folder / "absent")
    assert refused(folder / "tokenizer.json").endswith(f"Give the folder: {folder}")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["tokenizer.model"], "found only tokenizer.model. Save it once with transformers, in Python: `AutoTokenizer"),
        (["tekken.json"], "found only tekken.json. Save it once"),
        (["vocab.json", "merges.txt"], "found only vocab.json. Save it once"),
        (["adapter_config.json"], "Give the folder or Hub name of its base model."),
        (["model.safetensors"], "found model.safetensors. Give the folder"),
        ([], "found an empty folder."),
    ],
)
def test_folders_without_a_tokenizer_json(tmp_path, others, message):
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    found = refused(tmp_path)
    assert "expected tokenizer.json" in found
    assert message in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": ', "line 1, column 11: expected JSON"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid", "found a Git LFS pointer"),
        ("tokenizer_config.json", b"[]", "expected a JSON object, found list"),
        ("tokenizer_config.json", b'{"eos_token": 3}', "eos_token: expected a string or an object"),
        ("tokenizer_config.json", b'{"chat_template": [3]}', "chat_template: expected a string or a list of"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "expected a number or a list of numbers, found 'x'"),
        ("chat_template.jinja", b"ab\xff", "byte 2: expected UTF-8"),
        (
            "tokenizer_config.json",
            b'{"eos_token": "<none>"}',
            "the configuration names '<none>', which tokenizer.json lacks",
        ),
        ("tokenizer_config.json", b'{"extra_special_tokens": ["<none>"]}', "'<none>'"),
    ],
)
def test_broken_files_are_named_with_a_remedy(folder, name, content, message):
    write(folder, name, content)
    found = refused(folder)
    assert message in found
    assert str(folder) in found


def test_a_huge_file_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    assert "expected a tokenizer file of at most" in refused(folder)


def test_an_unreadable_file_is_named(folder):
    (folder / "tokenizer_config.json").mkdir()
    assert "tokenizer_config.json: cannot be read" in refused(folder)


# --- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub, folder):
    """Put `folder` into the cache as ORG/NAME, laid out as the Hub's client does: links to blobs."""
    repository = hub / "models--ORG--NAME"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    for path in (snapshot, blobs, repository / "refs"):
        path.mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    for path in folder.iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / path.name, snapshot))
    return snapshot


def test_a_hub_name_is_found_in_the_cache(hub, folder):
    write(folder, "tokenizer_config.json", {"eos_token": "</s>"})
    snapshot = cached(hub, folder)
    files = load_tokenizer_files("ORG/NAME")
    assert (files.name, files.folder, files.eos_ids) == ("ORG/NAME", snapshot, (2,))


def test_a_hub_name_that_is_nowhere(hub):
    found = refused("ORG/NAME")
    assert "the Hub could not be asked" in found
    assert "Connect once" in found


def test_a_hub_repository_without_tokenizer_json(hub, folder):
    (folder / "tokenizer.json").unlink()
    cached(hub, folder)
    assert "found none in the repository. If it holds only tokenizer.model or tekken.json: Save it" in refused(
        "ORG/NAME"
    )


def test_a_folder_wins_over_a_hub_name(folder, monkeypatch):
    (folder.parent / "ORG").mkdir()
    folder.rename(folder.parent / "ORG/NAME")
    monkeypatch.chdir(folder.parent)
    assert load_tokenizer_files("ORG/NAME").folder == Path("ORG/NAME")


def test_reading_a_folder_imports_neither_transformers_nor_the_hub(folder):
    import subprocess

    code = (
        "import sys; from premask.encode.files import load_tokenizer_files as load; load(sys.argv[1]); "
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
