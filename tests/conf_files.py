"""The files of conf/ as the tests read them."""

from omegaconf import OmegaConf

from vitmae.config import config_dir


def choices_of(group):
    """The choices of a config group; a file whose name begins with ``_`` is what they share."""
    return sorted(path.stem for path in (config_dir() / group).glob("[!_]*.yaml"))


def load_choice(group, choice):
    """A file of a config group, on top of the files of the group that its defaults name."""
    file = OmegaConf.load(config_dir() / group / f"{choice}.yaml")
    shared = [load_choice(group, entry) for entry in file.get("defaults", []) if isinstance(entry, str)]
    return OmegaConf.merge(*shared, file)
