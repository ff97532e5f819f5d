"""What SOURCE arguments stand for: files, globs, folders, `datasets` folders, Hub datasets, URLs; and every refusal."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from premask.errors import DataError, UsageError
from premask.read import (
    Place,
    Source,
    digest_file,
    first_rows,
    located,
    open_sources,
    parse,
    place_of,
    read_source,
    size_of,
    stamp_of,
)
from premask.read.expand import expand, visible

ROW = b'{"text": "a"}\n'


def write(folder: Path, *names: str, content: bytes = ROW) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(argument: str | Path) -> list[str]:
    return [source.name for source in open_sources([str(argument)])]


def table(rows: int = 3) -> pa.Table:
    return pa.table({"text": [f"t{n}" for n in range(rows)]})


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


# --- kinds


def test_kinds(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table().schema) as file:
        file.write_table(table())
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table().schema) as stream:
        stream.write_table(table())
    write(tmp_path, "d.csv", content=b"text\nt0\nt1\nt2\n")
    write(tmp_path, "e.json.gz", content=gzip.compress(b'[{"text": "t0"}, {"text": "t1"},\n{"text": "t2"}]'))
    write(tmp_path, "f.TSV.zst", content=pa.compress(b"text\tn\nt0\t\nt1\t\nt2\t\n", "zstd", asbytes=True))
    write(tmp_path, "g.jsonl.gz", content=gzip.compress(b'{"text": "t0"}\n{"text": "t1"}\n\n{"text": "t2"}'))
    write(tmp_path, "h.json.gz", content=b'{"text": "t0"}\n{"text": "t1"}\n{"text": "t2"}')
    sources = open_sources([str(tmp_path)])
    kinds = ["parquet", "arrow", "arrow", "csv", "json-array", "csv", "jsonl", "jsonl"]
    assert [source.kind for source in sources] == kinds
    assert [source.packed for source in sources] == [False, False, False, False, True, True, True, False]
    assert [source.sliceable for source in sources] == [True, True, True, False, False, False, False, True]
    for source in sources:
        assert source.size == source.path.stat().st_size
        assert [row["text"] for row in map(parse, read_source(source)) if isinstance(row, dict)] == ["t0", "t1", "t2"]
        assert len(first_rows(source, 2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.gz", gzip.compress(b""), DataError, "expected rows, found an empty file"),
        ("a.gz", gzip.compress(gzip.compress(ROW)), UsageError, ".*found gzip within gzip or Zstandard; unpack it"),
        ("a.gz", gzip.compress(b"PAR1"), UsageError, "expected JSON or CSV inside, found parquet; unpack it: it packs"),
        ("a.gz", gzip.compress(ROW * 99)[:30], UsageError, "expected a readable file, found an error: Truncated"),
        ("a.gz", gzip.compress("x".encode("utf-16")), UsageError, ".*found UTF-16; convert it to UTF-8"),
    ],
    ids=["empty", "twice", "parquet", "cut", "utf-16"],
)
def test_packed_files_that_are_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], words: str
) -> None:
    write(tmp_path, name, content=content)
    with pytest.raises(error, match=f"{name}: {words}"):
        open_sources([str(tmp_path / name)])


# --- globs and folders


def test_globs(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a.jsonl", "c.json", ".hidden.jsonl", "deep/er/d.jsonl", "odd[1].jsonl")
    assert names(f"{tmp_path}/[ab].jsonl") == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"]
    assert names(f"{tmp_path}/**/d*.jsonl") == [f"{tmp_path}/deep/er/d.jsonl"]
    assert names(f"{tmp_path}/de*") == [f"{tmp_path}/deep/er/d.jsonl"], "a folder that matches is read as a folder"
    assert names(tmp_path / "odd[1].jsonl") == [f"{tmp_path}/odd[1].jsonl"], "a file of that very name wins"
    with pytest.raises(UsageError, match=r"x\*\.jsonl: expected files that match, found none; check the pattern"):
        open_sources([f"{tmp_path}/x*.jsonl"])


def test_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        "b.jsonl",
        "a/z.json",
        "a/b.ndjson",
        ".git/x.jsonl",
        "a/.cache/x.json",
        "README.md",
        "dataset_infos.json",
    )
    write(tmp_path, "out/manifest.json", "out/plan.arrow", "out/train/data-0.arrow", "out/rejected.jsonl")
    write(tmp_path, "running/.premask/description.json", "running/train/data-0.arrow", "plans/plan.arrow.jsonl")
    expected = ["a/b.ndjson", "a/z.json", "b.jsonl", "plans/plan.arrow.jsonl"]
    assert names(tmp_path) == [f"{tmp_path}/{name}" for name in expected]
    assert names(f"{tmp_path}/a/") == [f"{tmp_path}/a/b.ndjson", f"{tmp_path}/a/z.json"]
    for ours in ("out", "running"):
        with pytest.raises(UsageError, match=f"{ours}: expected sources, found a dataset that premask prepared"):
            open_sources([str(tmp_path / ours)])
    with pytest.raises(
        UsageError, match=r"\.git: expected files named \*\.jsonl, .* in it, found none; name the files"
    ):
        write(tmp_path, ".git/y.txt")
        (tmp_path / ".git/x.jsonl").unlink()
        open_sources([str(tmp_path / ".git")])


def test_what_is_visible_does_not_depend_on_order() -> None:
    found = ["b.csv", "x/manifest.json", "x/plan.arrow", "x/train/state.json", "xx/a.jsonl", "y/plan.arrow", ".a/b.csv"]
    assert visible(found) == visible(reversed(found)) == ["b.csv", "xx/a.jsonl", "y/plan.arrow"]


def test_a_file_that_two_arguments_name(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl: expected every file once, found it under two arguments.*repeat"):
        open_sources([str(tmp_path), f"{tmp_path}/a.jsonl"])
    assert len(open_sources([f"{tmp_path}/a.jsonl", f"{tmp_path}/a.jsonl"])) == 2, "said twice in so many words"


# --- datasets


def save(folder: Path, *files: str, **state: Any) -> None:
    """What save_to_disk leaves, as far as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(files):
        with pa.ipc.new_stream(str(folder / name), table().schema) as stream:
            stream.write_table(pa.table({"text": [f"{name}{n}"]}))
    state |= {"_data_files": [{"filename": name} for name in files]}
    write(folder, "state.json", content=json.dumps(state).encode())
    write(folder, "dataset_info.json", content=b"{}")


def test_datasets_folders(tmp_path: Path) -> None:
    save(tmp_path / "one", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    write(tmp_path / "one", "cache-0123.arrow")
    files = [f"{tmp_path}/one/data-0000{n}-of-00002.arrow" for n in (0, 1)]
    assert names(tmp_path / "one") == files
    assert names(tmp_path) == files
    write(tmp_path, "dict/dataset_dict.json", content=b'{"splits": ["train", "test"]}')
    save(tmp_path / "dict/train", "data-00000-of-00001.arrow")
    assert names(tmp_path / "dict") == [f"{tmp_path}/dict/train/data-00000-of-00001.arrow"]
    save(tmp_path / "dict/test", "data-00000-of-00001.arrow")
    for folder in (tmp_path, tmp_path / "dict"):
        with pytest.raises(
            UsageError,
            match=r"dict: expected one split, found test and train; name the one to train on, such as .*/dict/test",
        ):
            open_sources([str(folder)])
    assert names(tmp_path / "dict/train") == [f"{tmp_path}/dict/train/data-00000-of-00001.arrow"]


def test_datasets_folders_that_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "some", "data-00000-of-00001.arrow", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(
        UsageError, match=r"some: expected .* just its rows, found one with a table of indices.*; call flatten"
    ):
        open_sources([str(tmp_path / "some")])
    write(tmp_path / "bad", "state.json", content=b"[]")
    with pytest.raises(
        DataError, match=r"bad: expected a state.json that lists the data files, found none in it; save"
    ):
        open_sources([str(tmp_path / "bad")])


def test_a_datasets_folder_that_lost_a_file(tmp_path: Path) -> None:
    save(tmp_path / "lost", "data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    (tmp_path / "lost/data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        DataError, match=r"expected the files .* lists, found no lost/data-00001-of-00002.arrow; put it"
    ):
        open_sources([str(tmp_path)])


def test_datasets_that_premask_wrote_are_no_splits_to_choose_from(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    write(tmp_path / "out", "manifest.json", "plan.arrow", "dataset_dict.json")
    save(tmp_path / "out/train", "data-00000-of-00001.arrow")
    save(tmp_path / "out/validation", "data-00000-of-00001.arrow")
    write(tmp_path / ".hidden", "state.json", content=b"not JSON")
    assert names(tmp_path) == [f"{tmp_path}/a.jsonl"]


def test_what_datasets_really_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(9)
    ]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    found = [row for source in open_sources([str(tmp_path / "saved")]) for row in read_source(source)]
    assert found == rows
    dataset.select([5, 1]).save_to_disk(tmp_path / "some")
    assert [row for s in open_sources([str(tmp_path / "some")]) for row in read_source(s)] == [rows[5], rows[1]]
    dataset.train_test_split(3, seed=1).save_to_disk(tmp_path / "both")
    with pytest.raises(UsageError, match="expected one split, found test and train"):
        open_sources([str(tmp_path / "both")])


class Hub:
    """In place of the module `datasets`."""

    __version__ = "2.16.0"

    def __init__(self, **splits: list[str]) -> None:
        self.splits = {
            name: SimpleNamespace(cache_files=[{"filename": f} for f in files]) for name, files in splits.items()
        }
        self.asked: list[Any] = []

    def load_dataset(self, name: str, split: str | None = None, *, trust_remote_code: bool) -> Any:
        assert not trust_remote_code
        self.asked.append((name, split))
        if name == "no/body":
            raise ConnectionError("the network is down\nand more")
        return self.splits[split] if split else dict(self.splits)


def test_hub_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "cache", "set-train-0.arrow", "set-train-1.arrow")
    files = [str(tmp_path / "cache" / f"set-train-{n}.arrow") for n in (0, 1)]
    hub = Hub(train=files, test=files[:1], empty=[])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert names("org/some-set.v2:train") == [f"org/some-set.v2:train/set-train-{n}.arrow" for n in (0, 1)]
    assert names("hf://org/set:test") == ["hf://org/set:test/set-train-0.arrow"]
    assert hub.asked == [("org/some-set.v2", "train"), ("org/set", "test")]
    with pytest.raises(
        UsageError, match=r"org/set: expected one split, found train and test and empty; .* org/set:train"
    ):
        open_sources(["org/set"])
    with pytest.raises(
        UsageError, match=r"org/set:empty: expected Arrow files in the cache .* found none; save_to_disk"
    ):
        open_sources(["org/set:empty"])
    with pytest.raises(
        UsageError, match="no/body: expected a file or a dataset of the Hub, found neither: the network is down; check"
    ):
        open_sources(["no/body"])
    monkeypatch.setitem(sys.modules, "datasets", Hub(train=files))
    assert len(names("org/set")) == 2, "the only split need not be named"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UsageError, match=r"org/set: expected a file or a dataset of the Hub, found no such file; .*pip install"
    ):
        open_sources(["org/set"])


def test_code_of_hub_datasets_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like a dataset of the Hub with a loading script, under the `datasets` that is installed."""
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "org" / "set" / "set.py"
    script.parent.mkdir(parents=True)
    script.write_text(f"open({str(tmp_path / 'trace')!r}, 'w').write('run')\n")
    with pytest.raises(UsageError, match="hf://org/set: expected a file or a dataset of the Hub, found neither"):
        open_sources(["hf://org/set"])
    assert not (tmp_path / "trace").exists()
    old = Hub(train=[])
    monkeypatch.setattr(Hub, "__version__", "2.15.1")
    monkeypatch.setitem(sys.modules, "datasets", old)
    with pytest.raises(UsageError, match=r"expected datasets 2\.16 or newer, found 2\.15\.1, which runs code"):
        open_sources(["hf://org/set"])
    assert old.asked == []


@pytest.mark.parametrize(
    "name", ["data/rows.jsonl", "here/missing", "./missing", "../missing", "a/b/c", "missing", "a/b.csv"]
)
def test_paths_are_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=f"{name}: expected a file, found nothing by that name; check the path"):
        open_sources([name])


# --- URLs


def test_urls(memory: Any, tmp_path: Path) -> None:
    for name in ("a.jsonl", "deep/b.jsonl", "deep/.hid/c.jsonl", "deep/readme.md"):
        memory.pipe(f"/bucket/{name}", ROW * 3)
    with memory.open("/bucket/deep/t.parquet", "wb") as file:
        pq.write_table(table(), file)
    assert names("memory://bucket/a.jsonl") == ["memory://bucket/a.jsonl"]
    (single,) = open_sources(["memory://bucket/a.jsonl"])
    assert single == Source("memory://bucket/a.jsonl", "memory://bucket/a.jsonl", "jsonl", len(ROW) * 3)
    found = open_sources(["memory://bucket/deep"])
    assert [source.name for source in found] == ["memory://bucket/deep/b.jsonl", "memory://bucket/deep/t.parquet"]
    assert [len(list(read_source(source))) for source in found] == [3, 3]
    (matched,) = open_sources(["memory://bucket/a*.jsonl"])
    assert len(list(read_source(matched))) == 3
    write(tmp_path, "a.jsonl")
    (local,) = open_sources([f"file://{tmp_path}/a.jsonl"])
    assert local.path == tmp_path / "a.jsonl"


def test_urls_that_are_refused(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"memory://no/a\.jsonl: expected a file, found nothing by that name"):
        open_sources(["memory://no/a.jsonl"])
    with pytest.raises(UsageError, match=r"memory://no/\*: expected files that match, found none"):
        open_sources(["memory://no/*"])
    with pytest.raises(
        UsageError, match="nope://x/a: expected a file system that fsspec knows, found: Protocol not known"
    ):
        open_sources(["nope://x/a"])

    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(
        UsageError, match=r"s3://b/a: expected a file system that is installed, found: Install s3fs.*; install"
    ):
        open_sources(["s3://b/a"])


def test_errors_of_remote_file_systems_are_worded(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/b/a.jsonl", ROW)

    class NoCredentials(Exception):
        pass

    def refuse(place: Place) -> Any:
        raise NoCredentials("Unable to locate credentials")

    monkeypatch.setattr("premask.read.sources.open_file", refuse)
    with pytest.raises(UsageError, match=r"a.jsonl: expected a readable file, found an error: Unable to locate cred"):
        open_sources(["memory://b/a.jsonl"])


def test_stamps_and_digests(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/b/a.jsonl", ROW)
    write(tmp_path, "a.jsonl")
    url, path = "memory://b/a.jsonl", tmp_path / "a.jsonl"
    assert digest_file(url) == digest_file(path) == digest_file(str(path))
    assert size_of(url) == size_of(path) == len(ROW)
    assert stamp_of(path) == stamp_of(path) is not None
    before = stamp_of(url)
    assert before == stamp_of(url) is not None
    memory.pipe("/b/a.jsonl", ROW * 2)
    assert stamp_of(url) != before
    memory.rm("/b/a.jsonl")
    assert stamp_of(url) is stamp_of(tmp_path / "gone") is None


def test_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("a.jsonl") == located(Path("a.jsonl")) == str(tmp_path.resolve() / "a.jsonl")
    assert located("s3://b/a.jsonl") == "s3://b/a.jsonl"
    assert place_of(f"file://{tmp_path}/a") == tmp_path / "a"
    assert place_of("s3://b/a") == "s3://b/a"


def test_expand_keeps_the_order_of_the_arguments(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a.jsonl")
    assert [s.name for s in open_sources([f"{tmp_path}/b.jsonl", f"{tmp_path}/a.jsonl"])] == [
        f"{tmp_path}/b.jsonl",
        f"{tmp_path}/a.jsonl",
    ]
    sources = open_sources([f"{tmp_path}/b.jsonl", f"{tmp_path}/a*"])
    assert [(s.name[-7:], s.argument) for s in sources] == [("b.jsonl", 0), ("a.jsonl", 1)]
    assert [found.name for found in expand(f"{tmp_path}/?.jsonl")] == [f"{tmp_path}/{n}.jsonl" for n in "ab"]
