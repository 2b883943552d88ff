"""No input ends in a traceback, a hang or silence: each case of the files `cases_*.py` ends as it says."""

import signal
from collections import Counter
from importlib import import_module
from pathlib import Path
from shutil import copytree

import pytest

from tests.command_line import process_restored, run_command
from tests.hostile.case import TINY
from tests.trained.parts import image_folder
from tests.training.standin import QUIET
from vitmae.errors import UserError

pytestmark = QUIET

COMMANDS = ("train", "evaluate", "compare", "embed", "reconstruct", "export", "prepare")
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
CASES = [case for module in MODULES for case in import_module(f"{__package__}.{module}").CASES]
ONE_IN = {"train": 6, "embed": 3, "evaluate": 3, "reconstruct": 3}
"""Of these commands' cases the fast suite has one in so many; the slow tests have the others."""
PARAMETERS, SLOW = [], set()
for number, case in enumerate(CASES):
    if case.is_slow or number % ONE_IN.get(str(case.command), 1):
        SLOW.add(case.id)
    PARAMETERS.append(pytest.param(case, id=case.id, marks=[pytest.mark.slow] * (case.id in SLOW)))
LEAST_CASES = 250
LIMIT_S = 60


def main_of(command):
    return import_module(f"vitmae.{command}").main


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The working directory that `Case` describes."""
    folder = tmp_path_factory.mktemp("hostile")
    for words in (["model=mae", f"hydra.run.dir={folder}/runs/mae"], ["model=vit", f"hydra.run.dir={folder}/vit"]):
        with process_restored():
            assert main_of("train")([*TINY, *words]) == 0
    image_folder(folder / "photos", count=4, size=(8, 8))
    return folder


@pytest.fixture
def folder(template, tmp_path, monkeypatch):
    """A copy of the template, as the working directory."""
    folder = tmp_path / "work"
    copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VITMAE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def time_limit():
    """A case that hangs fails; an input may make a system call block for ever."""

    def stop(signum, frame):
        pytest.fail(f"no end after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def entries(folder, is_training):
    """All paths below a folder, except runs/ of a training, which keeps its failed run."""
    paths = {path.relative_to(folder) for path in folder.rglob("*")}
    return {path for path in paths if not (is_training and path.parts[0] == "runs")}


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.usefixtures("time_limit")
def test_an_input_ends_as_its_case_says(case, folder, capsys):
    run = folder / "runs" / "mae"
    if case.files is not None:
        case.files(folder)
    before = entries(folder, case.command == "train")
    if callable(case.command):
        end_of_call(case, folder, run)
    else:
        arguments = [word.replace("{folder}", str(folder)).replace("{run}", str(run)) for word in case.arguments]
        end_of_command(case, run_command(main_of(case.command), *arguments, capsys=capsys))
    new = entries(folder, case.command == "train") - before
    assert {path.parts[0] for path in new} <= set(case.writes), f"left behind: {sorted(map(str, new))}"


def end_of_command(case, done):
    assert done.code == case.ends, done.err or done.out
    if case.ends == 0:
        assert done.err == ""
        assert not [text for text in case.says if text not in done.out], done.out
        return
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, f"more than one line:\n{done.err}"
    assert not [text for text in case.says if text not in done.err], done.err


def end_of_call(case, folder, run):
    if case.ends == 0:
        case.command(folder, run)
        return
    with pytest.raises(UserError) as error:
        case.command(folder, run)
    assert not [text for text in case.says if text not in str(error.value)], str(error.value)
    assert "\n" not in str(error.value)


def test_the_cases_are_many_and_each_says_something():
    assert len(CASES) - len(SLOW) >= LEAST_CASES
    assert not [name for name, count in Counter(case.id for case in CASES).items() if count > 1], "ids are unique"
    assert not [case.id for case in CASES if case.ends == 2 and not case.says], "a mistake is named"
    assert {case.command for case in CASES if isinstance(case.command, str)} == set(COMMANDS)
