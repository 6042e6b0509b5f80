"""Uploads an exported directory to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from src.errors import ParleyError
from src.models.sources import first_line


def check_account(repository: str) -> None:
    """Check repository name, token and connection, before anything is exported.

    Args:
        repository: `OWNER/NAME`.

    Raises:
        ParleyError: The name is invalid, there is no token, or the hub does not answer or does not accept the token.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ParleyError(f"--push-to-hub is {repository!r}; give OWNER/NAME as the hub has it.") from error
    if "/" not in repository:
        raise ParleyError(f"--push-to-hub is {repository!r}; say whose it is: OWNER/{repository}.")
    if get_token() is None:
        raise ParleyError("there is no token for the hub; run `hf auth login`, or set HF_TOKEN.")
    try:
        HfApi().whoami()
    except Exception as error:  # of any type: the hub's client changed its HTTP library between releases
        raise ParleyError(
            f"the hub cannot be asked ({first_line(error).rstrip('.')}); see to the network and the token, "
            "or leave --push-to-hub out."
        ) from error


def publish(directory: str | Path, repository: str, *, public: bool = False) -> str:
    """Upload a directory to the hub, as one commit.

    An existing repository keeps its other files and its visibility.

    Args:
        directory: The directory that `export` wrote.
        repository: `OWNER/NAME`; created if it does not exist.
        public: Whether a new repository is public.

    Returns:
        The repository's address.

    Raises:
        ParleyError: The upload failed; the directory stays.
    """
    from huggingface_hub import HfApi

    from src import __version__

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message=f"Write what Parley {__version__} exported"
        )
    except Exception as error:  # of any type, as in check_account
        raise ParleyError(
            f"{directory} is written, but the hub did not take it ({first_line(error).rstrip('.')}); "
            f"try again with: hf upload {repository} {directory}"
        ) from error
    return str(address)
