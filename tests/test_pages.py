"""What the pages say is so: commands, settings, names of classes, links and paths."""

import re
import sys

import pytest
from omegaconf import OmegaConf

from tests.conf_files import choices_of, load_choice
from tests.pages import PAGES, ROOT, commands_of, write_own_files
from vitmae.__main__ import COMMANDS
from vitmae.compare import store_overrides
from vitmae.composition import compose, split_arguments
from vitmae.config import check_settings, locate, setting_keys
from vitmae.errors import UserError

SHOWN = [
    pytest.param(command, words, id=f"{page.relative_to(ROOT)}: {' '.join([command, *words])}")
    for page in PAGES
    for command, words in commands_of(page)
]
GROUPS = ("model", "backbone", "data", "trainer", "logger")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """The working directory of docs/your_own.md."""
    write_own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def check_training(words):
    check_settings(compose([*words, "trainer.precision=32-true"]))  # `auto` is Lightning's only once a run has chosen


def check(command, words, monkeypatch):
    """Compose a command line and check its settings, without running it."""
    assert command in COMMANDS
    flags, overrides = split_arguments(words)
    monkeypatch.setattr(sys, "argv", [command, *words])  # where --config-dir is looked for
    if command == "train":
        check_training([word.partition(",")[0] if "-m" in flags else word for word in overrides])
    elif command == "evaluate":  # its data are a choice of the group, on top of those of a run
        of_data = [word for word in overrides if word.startswith("data")]
        check_training(of_data)
        check_settings(compose([word for word in overrides if word not in of_data], command))
    elif command == "compare":
        others = [word for word in store_overrides(words)[len(flags) :] if not word.startswith("--")]
        settings = compose(others, "comparison")
        check_settings(settings)
        for method in settings["methods"]:
            stage = settings["finetune"] + settings["scratch"] if method == "scratch" else settings["pretrain"]
            model = "vit" if method in ("scratch", "supervised") else method
            check_training([f"model={model}", *settings["train"], *stage, *settings["own"].get(method, [])])
    else:
        check_settings(compose(overrides, command))


@pytest.mark.parametrize(("command", "words"), SHOWN)
def test_every_command_that_a_page_shows_composes(command, words, own_files, monkeypatch):
    if words or command == "train":
        check(command, words, monkeypatch)
    else:  # a command's name in running text
        assert command in COMMANDS


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["model=mea"]),
        ("train", ["model.mask_rato=0.5"]),
        ("train", ["model.mask_ratio=2"]),
        ("evaluate", ["ckpt=last", "probs=knn"]),
        ("evaluate", ["ckpt=last", "data=foldr"]),
        ("compare", ["out=x", "mae=[model.mask_rato=0.5]"]),
        ("compare", ["out=x", "methods=[mine]"]),
        ("embed", ["ckpt=last", "image=photos/"]),
        ("embed", ["ckpt=last"]),
    ],
)
def test_a_command_with_a_wrong_name_or_value_would_be_found(command, words, monkeypatch):
    with pytest.raises(UserError):
        check(command, words, monkeypatch)


def test_commands_are_found_in_code_blocks_and_in_running_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\npython -m vitmae.train a=1 \\\n    'b=[1, 2]'   # c=3\n```\nsee `python -m vitmae embed d=4`.\n"
    )
    assert commands_of(page) == [("train", ["a=1", "b=[1, 2]"]), ("embed", ["d=4"])]


@pytest.mark.parametrize("group", GROUPS)
def test_the_table_of_groups_lists_every_choice(group):
    row = re.search(rf"^\| `{group}` \| (.*?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row[1])) == set(choices_of(group))


@each_page
def test_every_setting_that_a_page_names_exists(page):
    known = set()
    for group in GROUPS:
        for node in (OmegaConf.to_container(load_choice(group, choice)) for choice in choices_of(group)):
            known |= {f"{group}.{key}" for key in setting_keys(node["data"] if group == "data" else node)}
    named = re.findall(rf"`((?:{'|'.join(GROUPS)})\.[a-z][\w.]*)(?==|`)", page.read_text(encoding="utf-8"))
    assert set(named) - known == set()


@each_page
def test_every_class_and_function_that_a_page_names_exists(page):
    for name in re.findall(r"`(vitmae(?:\.\w+)+)[`(]", page.read_text(encoding="utf-8")):
        assert locate(name) is not None


@each_page
def test_every_link_and_path_of_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()}
    rooms = {path.name for place in (ROOT, ROOT / "vitmae") for path in place.iterdir()} - {"runs"}
    paths = re.findall(r"`([\w.-]+(?:/[\w.-]*)+|\w+\.(?:py|md|ipynb))`", text)
    ours = {path for path in paths if path.partition("/")[0] in rooms or re.match(r"(?!mine/).*\.py$", path)}
    missing = {path for path in ours if not any((place / path).exists() for place in (ROOT, ROOT / "vitmae"))}
    files = {path.name for path in (ROOT / "vitmae").rglob("*.py")}
    assert links | missing - files == set()
