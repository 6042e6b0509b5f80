"""An exported directory on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from src.errors import ParleyError
from src.models.sources import first_line


def check_account(repository: str) -> None:
    """Find out, before there is anything to send, whether the hub would take it.

    Args:
        repository: `OWNER/NAME`.

    Raises:
        ParleyError: That is no name of a repository, there is no token, or the hub does not answer or know it.
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
    except Exception as error:  # of every kind, since the hub's client has other HTTP libraries in other releases
        raise ParleyError(
            f"the hub cannot be asked ({first_line(error).rstrip('.')}); see to the network and the token, "
            "or leave --push-to-hub out."
        ) from error


def publish(directory: str | Path, repository: str, *, public: bool = False) -> str:
    """Put a directory on the hub, as one commit.

    A repository that is there keeps what it has of other names, and is as public as it was.

    Args:
        directory: What `export` wrote.
        repository: `OWNER/NAME`; made where it is not there.
        public: Whether everybody may see a repository that is made.

    Returns:
        The repository's address.

    Raises:
        ParleyError: It was not taken; the directory stays.
    """
    from huggingface_hub import HfApi

    from src import __version__

    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=directory, commit_message=f"Write what Parley {__version__} exported"
        )
    except Exception as error:  # as above
        raise ParleyError(
            f"{directory} is written, but the hub did not take it ({first_line(error).rstrip('.')}); "
            f"try again with: hf upload {repository} {directory}"
        ) from error
    return str(address)
