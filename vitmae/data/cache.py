"""What is measured once about a set of images and remembered: small JSON files under a content key."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitmae.atomic import atomic_write


def cache_dir() -> Path:
    """Where things are remembered: $VITMAE_CACHE, or ~/.cache/vitmae."""
    return Path(os.environ.get("VITMAE_CACHE") or Path.home() / ".cache" / "vitmae")


def digest(*parts: object) -> str:
    """One key of many parts: bytes as they are, anything else as it is printed."""
    key = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes | memoryview) else str(part).encode(errors="surrogateescape")
        key.update(b"%d:" % (data.nbytes if isinstance(data, memoryview) else len(data)))
        key.update(data)
    return key.hexdigest()


def remember(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """What ``compute`` returned when it was last called for this key, else what it returns now.

    Args:
        kind: a folder of the cache.
        key: a `digest` of all that the answer depends on.
        compute: returns plain JSON types.
    """
    path = cache_dir() / kind / f"{key}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        answer = compute()
    with suppress(OSError):  # a home that cannot be written to costs time, not the run
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(answer).encode())
    return answer
