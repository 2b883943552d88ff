"""Results that are measured once per set of images: small JSON files, named by a hash of the content."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write


def cache_dir() -> Path:
    """The folder of the cache: $VITMAE_CACHE, or ~/.cache/vitmae."""
    return Path(os.environ.get("VITMAE_CACHE") or Path.home() / ".cache" / "vitmae")


def digest(*parts: object) -> str:
    """A hash of many parts: bytes as they are, anything else as text."""
    key = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes | memoryview) else str(part).encode(errors="surrogateescape")
        key.update(b"%d:" % (data.nbytes if isinstance(data, memoryview) else len(data)))
        key.update(data)
    return key.hexdigest()


def remember(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """The cached result of a key; if it is missing, compute and cache it.

    Args:
        kind: a folder of the cache.
        key: a `digest` of all that the result depends on.
        compute: returns plain JSON types.
    """
    path = cache_dir() / kind / f"{key}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        result = compute()
    with suppress(OSError):  # without a writable cache, a run takes longer but works
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(result).encode())
    return result
