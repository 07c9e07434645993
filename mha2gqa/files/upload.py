"""Uploads a finished checkpoint to the Hugging Face Hub; what `hub.py` is for downloads.

A name that no repository can have is refused when options are read, an account that is not there before anything is
made (`check_account`). `push` sends a folder as it is. An upload that ended early has sent whole files, or parts of
them, which are not sent again; what it was to send stays where it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mha2gqa.errors import Interrupted, OutputError, going_on
from mha2gqa.files.hub import reason

_LEFT_OUT = (".*", "**/.*")
"""Hidden files are no part of a checkpoint."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""Files that an earlier result has left there, perhaps divided otherwise, would be loaded for this one's."""


def repository_name(value: Any) -> str:
    """Return a name that a repository can have.

    Raises:
        ValueError: None can have it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(str(error).rstrip(".")) from None
    if "/" not in value:
        raise ValueError(f"{value!r} does not say whose repository it is, such as org/{value}")
    return str(value)


def check_account(hub_id: str | None) -> None:
    """Refuse an upload for which the Hub knows no account; without a name there is none.

    Raises:
        OutputError: There is no token, the Hub does not take it, or it cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if hub_id is None:
        return
    if get_token() is None:
        raise OutputError(
            f"There is no account to upload {hub_id} with",
            expected="a token that may write",
            remedy="Run `hf auth login`, or set HF_TOKEN",
        )
    with _refusals(hub_id, "cannot be uploaded"):
        HfApi().whoami()


def push(directory: Path, hub_id: str, *, private: bool) -> str:
    """Upload a finished checkpoint; the repository is made where there is none.

    Args:
        directory: Its files become those of the repository; others that are there stay, if they are no weights.
        hub_id: `org/name`.
        private: Whether nobody else shall see the repository; else that is the organisation's default.

    Returns:
        The address of the repository.

    Raises:
        OutputError: The Hub refuses, cannot be reached, or has that repository for all to see already. The message
            says what goes on with it.
        Interrupted: The same, for Ctrl-C.
    """
    from huggingface_hub import HfApi

    api, to = HfApi(), f"--push-to-hub {hub_id}{' --private' * private}"
    kept = going_on(directory, f"`mha2gqa export {directory} {to}`")
    try:
        with _refusals(hub_id, f"did not take {directory} whole"):
            url = api.create_repo(hub_id, private=private or None, exist_ok=True)
            if private and not api.model_info(hub_id).private:
                raise OutputError(
                    f"{hub_id} is there already, and everybody can see it",
                    expected="a repository that is private, or none",
                    remedy="Make it private on the Hub, name another, or leave out --private",
                )
            api.upload_folder(
                repo_id=hub_id, folder_path=directory, ignore_patterns=list(_LEFT_OUT), delete_patterns=list(_WEIGHTS)
            )
    except OutputError as error:
        error.kept = kept
        raise
    except KeyboardInterrupt:
        raise Interrupted(kept) from None
    return str(url)


@contextmanager
def _refusals(hub_id: str, problem: str) -> Iterator[None]:
    """Raise what huggingface_hub reports of an upload as a refusal of ours."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    # hf_xet reports a broken transfer as RuntimeError, git-lfs what it refuses as ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        status = getattr(getattr(error.__cause__ or error, "response", None), "status_code", None)
        remedy = "Check the network, the proxy and HF_ENDPOINT, and try again"
        if status in (401, 403):
            remedy = "Log in with a token that may write there (`hf auth login`), or name a repository of your own"
        raise OutputError(f"{hub_id} {problem} ({reason(error)})", remedy=remedy) from error
