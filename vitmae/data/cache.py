"""Results that are measured once per set of images, cached as small JSON files under a content key."""

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
    """A hash of many parts: of bytes as they are, of anything else as text."""
    key = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes | memoryview) else str(part).encode(errors="surrogateescape")
        key.update(b"%d:" % (data.nbytes if isinstance(data, memoryview) else len(data)))
        key.update(data)
    return key.hexdigest()


def remember(kind: str, key: str, compute: Callable[[], Any]) -> Any:
    """The cached answer for this key; without one, ``compute`` is called and its answer cached.

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
    with suppress(OSError):  # without a writable cache a run takes longer, but works
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(answer).encode())
    return answer
