"""The pages of the project as the tests read them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RESULTS.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OWN = ROOT / "docs" / "your_own.md"


def commands_of(page):
    """Every `python -m vitmae.COMMAND …` of a page: (COMMAND, its words), in code blocks and in running text."""
    lines = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    found = re.findall(r"python -m vitmae[. ]([a-z][^`\n]*)", lines)
    return [(words[0], words[1:]) for words in (shlex.split(line, comments=True) for line in found)]


def write_own_files(folder):
    """Write the files that docs/your_own.md shows into `folder`."""
    files = re.findall(
        r"^`(mine/[\w/.]+)`\n\n```\w+\n(.*?)^```$", OWN.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
