"""Where bytes are: a local path, or a URL that fsspec knows (`s3://...`), opened alike; gzip and Zstandard unpacked.

fsspec is imported when the first URL is met, pyarrow's codecs with the first packed file. `file://` is a local path.
"""

import hashlib
import importlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from premask.errors import UsageError

Place: TypeAlias = Path | str
"""A local file as a path or as its text, or a URL."""

BUFFER = 2**20
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""Codecs that are read, by the bytes with which a file begins."""


def is_url(place: Place) -> bool:
    """Tell a URL from a local path."""
    return isinstance(place, str) and "://" in place


def place_of(name: str) -> Place:
    """Make a path of a local file's name or `file://` URL; any other URL stays what it is."""
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    return name if is_url(name) else Path(name)


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL and the path in it. UsageError where that is unknown or not installed."""
    try:
        fs, path = importlib.import_module("fsspec.core").url_to_fs(url)
    except ImportError as error:
        remedy = "install the package it names, or copy the file here"
        raise UsageError(f"{url}: expected a file system that is installed, found: {error}; {remedy}") from None
    except ValueError as error:
        remedy = "write a path, or a URL such as s3://bucket/file.jsonl"
        raise UsageError(f"{url}: expected a file system that fsspec knows, found: {error}; {remedy}") from None
    return fs, path


def open_file(place: Place) -> io.BufferedReader:
    """Open a file for reading, buffered; it can seek."""
    if not is_url(place):
        return io.BufferedReader(Path(place).open("rb", buffering=0), BUFFER)
    fs, path = filesystem(str(place))
    return io.BufferedReader(fs.open(path, "rb"), BUFFER)


def open_stream(place: Place) -> BinaryIO:
    """Open a file for reading from its start on, unpacked where it is packed. Damage there raises a bare OSError."""
    file = open_file(place)
    codec = codec_of(file)
    if codec is None:
        return file
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), codec), BUFFER)


def codec_of(file: io.BufferedReader) -> str | None:
    """Name the codec that packed a file, which stays where it is, at its start."""
    head = file.peek(4)[:4]
    return next((codec for magic, codec in PACKED.items() if head.startswith(magic)), None)


def size_of(place: Place) -> int:
    """Bytes of a file, as it is stored."""
    if not is_url(place):
        return Path(place).stat().st_size
    fs, path = filesystem(str(place))
    return int(fs.size(path))


def stamp_of(place: Place) -> tuple[Any, ...] | None:
    """What changes when a file is written to or replaced; None where it is gone."""
    try:
        if not is_url(place):
            status = Path(place).stat()
            return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
        fs, path = filesystem(str(place))
        fs.invalidate_cache()
        return int(fs.size(path)), str(fs.ukey(path))
    except FileNotFoundError:
        return None


def digest_file(place: Place) -> str:
    """SHA-256 of a file as it is stored, in hexadecimal; bounded memory."""
    with open_file(place) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def read_text(place: Place) -> bytes:
    """Read a small file whole."""
    with open_file(place) as file:
        return file.read()


def join(place: Place, name: str) -> Place:
    """Name a file below a folder; `name` is relative, with slashes."""
    return place / name if isinstance(place, Path) else f"{str(place).rstrip('/')}/{name}"


def files_below(place: Place) -> list[str]:
    """All files below a folder, sorted, by their relative names with slashes; hidden ones are kept."""
    if not is_url(place):
        root = Path(place)
        names = [
            (Path(folder) / file).relative_to(root).as_posix() for folder, _, files in os.walk(root) for file in files
        ]
        return sorted(names)
    fs, path = filesystem(str(place))
    return sorted(found[len(path.rstrip("/")) :].lstrip("/") for found in fs.find(path))


def located(place: Place) -> str:
    """Name a file wherever it is asked for: a local path becomes absolute, a URL stays what it is."""
    return str(place) if is_url(place) else str(Path(place).resolve())
