"""The lower ends of pyproject.toml's ranges as pip's constraints: `python -m tests.oldest > constraints-oldest.txt`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = "# The lower ends of the ranges in pyproject.toml, which `make test-oldest` installs. Made by tests/oldest.py."


def constraints() -> str:
    """One exact version a line: of what a run needs, of the extra `fast`, and of pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges = project["dependencies"] + extras["fast"] + [line for line in extras["dev"] if line.startswith("pytest>")]
    return "\n".join([HEADER, *(re.sub(r">=([^,]+).*", r"==\1", line) for line in ranges), ""])


if __name__ == "__main__":
    print(constraints(), end="")
