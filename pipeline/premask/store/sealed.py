"""JSON files that carry their own checksum, so that damage to the very file which lists all checksums is found too.

The checksum is the SHA-256 of the file as it stands, with nothing between the quotes of its top-level `checksum`. It
covers every byte, white space included.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from premask.store.atomic import Written, atomic_write

_KEY = b'\n  "checksum": "'  # two spaces: the top level alone; a text holds no raw line end
_HEX = 64


def write_sealed(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> Written:
    """Write `content` as JSON with its checksum, atomically: sorted keys, two spaces; equal contents, equal bytes."""
    with atomic_write(path, durable=durable) as file:
        file.write(sealed(content))
    return file.written(path)


def sealed(content: Mapping[str, Any]) -> bytes:
    """The bytes of the file that `write_sealed` writes."""
    text = json.dumps({**content, "checksum": ""}, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    blank = text.encode() + b"\n"
    at = blank.index(_KEY) + len(_KEY)
    return blank[:at] + hashlib.sha256(blank).hexdigest().encode() + blank[at:]


def unseal(data: bytes) -> dict[str, Any]:
    """The content of a sealed file's bytes, without its checksum. ValueError where any of them has changed."""
    at = data.find(_KEY) + len(_KEY)
    if at < len(_KEY):
        raise ValueError("no checksum")
    if hashlib.sha256(data[:at] + data[at + _HEX :]).hexdigest().encode() != data[at : at + _HEX]:
        raise ValueError("a checksum that does not fit the content")
    content: dict[str, Any] = json.loads(data)
    del content["checksum"]
    return content
