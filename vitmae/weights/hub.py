"""Upload a bundle to the Hugging Face hub."""

import re
from pathlib import Path

from vitmae.errors import UserError, first_line


def check_repository(name: str) -> None:
    """Refuse a name that no repository can have, before anything is written.

    Raises:
        UserError: it is not of the form USER/REPO.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"push={name}: must be USER/REPO")


def push_bundle(folder: Path, name: str) -> str:
    """Upload a folder to a repository; a new repository is private.

    Args:
        folder: a bundle.
        name: USER/REPO.

    Returns:
        The repository's address.

    Raises:
        UserError: nobody is logged in, or the hub cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A bundle of vitmae")
    except Exception as error:  # a network fails in many ways, each library's its own
        raise UserError(
            f"push={name} failed ({first_line(error)}): the bundle is in {folder}; `hf auth login`, "
            f"then `hf upload {name} {folder}`"
        ) from error
    return str(address)
