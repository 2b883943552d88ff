"""All commands under one name: `vitmae train …` and `python -m vitmae train …` run `python -m vitmae.train …`."""

import ast
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from vitmae.interruption import interruption

COMMANDS = ("train", "evaluate", "compare", "embed", "reconstruct", "export", "prepare", "replay")


def main() -> int:
    """Run the command that the first argument names, with the arguments after it.

    Returns:
        The exit code of the command; 2 if no command has this name.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(command_list())
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"error: vitmae has no command {name}: {hint}", file=sys.stderr)
        return 2
    import __main__

    # Lightning runs this process's command line again to start other processes, so it must name the command's module.
    __main__.__spec__ = find_spec(f"vitmae.{name}")
    sys.argv = [sys.argv[0], *arguments]
    with interruption.answered():  # before the command's module is imported, which takes a second
        code: int = import_module(f"vitmae.{name}").main()
    return code


def command_list() -> str:
    """One line for each command: the first line of its docstring, read without importing the command."""
    lines = ["vitmae COMMAND [setting=value ...], the same as python -m vitmae.COMMAND; add --help to learn more", ""]
    for name in COMMANDS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        about = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:12} {about.partition(':')[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
