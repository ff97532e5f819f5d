"""The sources of a run: every file that the arguments stand for, and what kind of file its bytes say it is."""

import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, get_args

from premask.errors import DataError, UsageError
from premask.read.cut import BOM, is_blank
from premask.read.expand import PACKED_SUFFIXES, expand
from premask.read.lines import parse
from premask.read.places import Place, codec_of, is_url, open_file, open_stream, size_of

Kind: TypeAlias = Literal["jsonl", "json-array", "csv", "parquet", "arrow"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_HEAD = 2**20
_LINES = (".jsonl", ".ndjson")
_CELLS = (".csv", ".tsv")
_TABLES: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_MAGIC = {
    b"\x1f\x8b": ("gzip within gzip or Zstandard", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("Zstandard within gzip or Zstandard", "unpack it"),
    b"BZh": ("bzip2", "decompress it (bunzip2), or pack it with gzip or zstd"),
    b"\xfd7zXZ": ("xz", "decompress it (unxz), or pack it with gzip or zstd"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"\xff\xfe": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    name: str
    """As it was given; the folder's or dataset's name and the file's where it was found by one."""

    path: Place
    """A `Path` where it is local, otherwise a URL."""

    kind: Kind

    size: int
    """Bytes, as it is stored."""

    packed: bool = False
    """Compressed as a whole, by gzip or Zstandard."""

    argument: int = 0
    """Index of the argument that stands for it."""

    @property
    def sliceable(self) -> bool:
        """Whether partitions can be read from the file as it is; otherwise it is cut into lines first."""
        return not self.packed and self.kind in ("jsonl", "parquet", "arrow")


def open_sources(arguments: list[str]) -> list[Source]:
    """Look at every file that the arguments stand for: is it there, readable, not empty, and of which kind.

    Raises:
        UsageError: a file is missing, unreadable, or of a kind that is not read; a folder, pattern or dataset is of no
            use (see `premask.read.expand`); two arguments, one of them a folder or pattern, stand for the same file.
        DataError: a file is empty, or holds a single JSON object over several lines.

    """
    if not arguments:
        raise UsageError("sources: expected at least one file, found none; name a file, a folder or a dataset")
    found = [(number, file) for number, argument in enumerate(arguments) for file in expand(argument)]
    times = Counter(str(file.place) for _, file in found)
    for number, file in found:
        if file.name != arguments[number] and times[str(file.place)] > 1:
            raise UsageError(
                f"{file.name}: expected every file once, found it under two arguments, one of them "
                f"{arguments[number]}; name it once (a recipe can repeat a source)"
            )
    return [_open_source(file.name, file.place, number) for number, file in found]


def _open_source(name: str, place: Place, argument: int) -> Source:
    try:
        if not is_url(place):
            _require_regular(name, Path(place))
        with open_file(place) as file:
            packed = codec_of(file) is not None
        head = _read_head(place)
        size = size_of(place)
    except FileNotFoundError:
        raise UsageError(f"{name}: expected a file, found nothing by that name; check the path") from None
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and not is_url(place):
            raise  # file systems of URLs raise what they like
        raise UsageError(f"{name}: expected a readable file, found an error: {error}; check path and rights") from None
    return Source(name, place, _kind(name, head, packed), size, packed, argument)


def _require_regular(name: str, path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UsageError(f"{name}: expected a file, found a pipe or device; write its content to a file first")


def _read_head(place: Place) -> bytes:
    """Read the first bytes that are not all blank, unpacked."""
    with open_stream(place) as file:
        while (head := file.read(_HEAD)) and is_blank(head):
            pass
        return head


def _kind(name: str, head: bytes, packed: bool) -> Kind:
    """Tell what a file holds by its first bytes, and for text by its suffix."""
    for magic, kind in _TABLES.items():
        if head.startswith(magic):
            if packed:
                raise UsageError(
                    f"{name}: expected JSON or CSV inside, found {kind}; unpack it: it packs its columns itself"
                )
            return kind
    for magic, (found, remedy) in _MAGIC.items():
        if head.startswith(magic):
            raise UsageError(f"{name}: expected JSON or CSV in UTF-8, Parquet or Arrow, found {found}; {remedy}")
    text = head.replace(BOM, b"").lstrip()
    if not text:
        raise DataError(f"{name}: expected rows, found an empty file; drop it from the sources")
    suffix = suffix_of(name)
    if suffix in _CELLS:
        return "csv"
    if suffix in _LINES:
        return "jsonl"
    if text.startswith(b"{") and _is_one_object(text):
        remedy = "write an array of rows ([{...}, {...}]), or one row per line"
        raise DataError(f"{name}: expected an array of rows or one row per line, found one JSON object; {remedy}")
    return "json-array" if text.startswith(b"[") else "jsonl"


def suffix_of(name: str) -> str:
    """The suffix that tells the kind of a text, in lower case: `.csv` of `rows.CSV.gz`."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name).suffix.lower()


def _is_one_object(head: bytes) -> bool:
    """Tell a pretty-printed object from JSONL: no whole line of it is an object by itself."""
    lines = [line for line in head.split(b"\n")[:-1] if not is_blank(line)][:20]
    return len(lines) > 1 and not any(type(parse(line)) is dict for line in lines)
