"""What comes from the Hugging Face Hub: fetches what a conversion needs and words what goes wrong.

A repository gives its configuration, tokenizer, code, texts, folders that `modules.json` names, and one set of weights:
safetensors, or `pytorch_model*.bin` where there are none. What the cache of huggingface_hub holds is used when the Hub
is out of reach, and nothing is written outside that cache.

Which names are Hub ids is settled in `source.py`; what the files contain, in `reader.py`. `upload.py` sends results.
huggingface_hub is imported inside functions: it is slow to load, and a local directory does not need it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from mha2gqa.errors import CheckpointError, SourceError
from mha2gqa.files.companions import module_folders

ID_FORM = "Hub ids look like org/name or org/name@revision"

# The chat templates are here because the second download takes nothing else from a subfolder.
SMALL = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.index.json", "modules.json"),
    "additional_chat_templates/*",
)
COMPANIONS = (
    *("*.json", "*.jinja", "*.py", "*.md", "LICENSE*", "NOTICE*"),
    *("tokenizer*", "*.txt", "*.model", "*.tiktoken", "*.spm"),
)
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Mistral and Meta publish their own format, whole, beside the one that transformers reads.
ELSEWHERE = ("*/*", "consolidated*")


def download(hub_id: str, revision: str | None, *, small: bool) -> Path:
    """Have the files of a revision in the cache.

    Args:
        hub_id: `org/name`.
        revision: Branch, tag or commit; None is the main branch.
        small: Fetch the configuration and the index of the weights, and no weights.

    Returns:
        The directory of the snapshot, which is named after the commit.

    Raises:
        SourceError: There is no such repository or revision, it holds no checkpoint, or it cannot be fetched.
    """
    with _refusals(hub_id, revision):
        return _download(hub_id, revision, small=small)


def weight_shapes(hub_id: str, revision: str | None) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Read the dtype and shape of every tensor from the headers of the safetensors; None where there are none.

    Raises:
        CheckpointError: A header or the index is malformed, or the index names a file that is not there.
        SourceError: The Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, RemoteEntryNotFoundError, SafetensorsParsingError

    with _refusals(hub_id, revision):
        try:
            metadata = HfApi().get_safetensors_metadata(hub_id, revision=revision)
        except NotASafetensorsRepoError:
            return None
        # huggingface_hub takes the index and the headers at their word: a list in place of a table is a TypeError.
        except (SafetensorsParsingError, RemoteEntryNotFoundError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The safetensors headers of {hub_id} cannot be read ({reason(error)})",
                expected="well-formed files, and an index that names no others",
                remedy="Choose another revision, or report it to the repository's authors",
            ) from error
    tensors = [item for file in metadata.files_metadata.values() for item in file.tensors.items()]
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}


def _download(hub_id: str, revision: str | None, *, small: bool) -> Path:
    """Return the cached snapshot of a revision, complete as far as it was asked for."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    # The first call settles the commit, from the cache if the Hub is out of reach; the rest stays with that commit.
    directory = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(SMALL)))
    commit = directory.name
    if not (directory / "config.json").is_file():
        raise _no_checkpoint(hub_id, "config.json")
    if small:
        return directory
    try:
        info = HfApi().model_info(hub_id, revision=commit)
        weights = _preferred_weights(file.rfilename for file in info.siblings or ())
    except (HTTPError, OfflineModeIsEnabled):
        weights = _preferred_weights(path.name for path in directory.iterdir())
        if weights is None:
            raise
    if weights is None:
        raise _no_checkpoint(hub_id, " or ".join(WEIGHTS))
    patterns = [*COMPANIONS, weights]
    snapshot_download(hub_id, revision=commit, allow_patterns=patterns, ignore_patterns=list(ELSEWHERE))
    if folders := [f"{escape(str(folder))}/*" for folder in module_folders(directory)]:
        snapshot_download(hub_id, revision=commit, allow_patterns=folders)
    return directory


def _preferred_weights(files: Iterable[str]) -> str | None:
    names = [file for file in files if not any(fnmatch(file, pattern) for pattern in ELSEWHERE)]
    return next((pattern for pattern in WEIGHTS if any(fnmatch(name, pattern) for name in names)), None)


def _no_checkpoint(hub_id: str, lacks: str) -> SourceError:
    return SourceError(
        f"{hub_id} has no {lacks}",
        expected="a transformers checkpoint at the top of the repository",
        remedy="If it holds an adapter, a GGUF export or another format, name the model that it was made from",
    )


@contextmanager
def _refusals(hub_id: str, revision: str | None) -> Iterator[None]:
    """Raise what huggingface_hub reports about a repository as a refusal of ours."""
    # HTTPError is the HTTP client's own, and releases of huggingface_hub differ in their client.
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    # hf_xet reports a broken transfer as RuntimeError.
    except (HFValidationError, HTTPError, OSError, RuntimeError) as error:
        problem, expected, remedy = _wording(error, hub_id, revision)
        raise SourceError(problem, expected=expected, remedy=remedy) from error


def _wording(error: Exception, hub_id: str, revision: str | None) -> tuple[str, str, str]:
    """Problem, expectation and remedy; the narrower classes of errors come first."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{hub_id}"
    match error:
        case errors.HFValidationError():
            problem = f"{hub_id!r} is neither a directory nor a Hub id ({reason(error)})"
            return problem, "", ID_FORM
        case errors.GatedRepoError():
            problem = f"{hub_id} is gated, and this account has no access to it"
            return problem, "", f"Ask for access at {page}, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            problem = f"No directory and no Hub repository is called {hub_id!r}"
            expected = "a directory, or a repository that this account can see"
            return problem, expected, "Check the spelling; if the repository is private, run `hf auth login`"
        case errors.RevisionNotFoundError():
            expected = "a branch, a tag or a full commit hash"
            remedy = f"See {page}/tree/main, or leave out @{revision} for the main branch"
            return f"{hub_id} has no revision {revision!r}", expected, remedy
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE:
            problem = f"{hub_id} is not in the cache, or not all of it, and HF_HUB_OFFLINE forbids to download it"
            command = f"hf download {hub_id}" + (f" --revision {revision}" if revision else "")
            remedy = f"Unset HF_HUB_OFFLINE, or run `{command}` where there is a network"
            return problem, f"a complete copy in {constants.HF_HUB_CACHE}", remedy
        case OSError(errno=int()) if not isinstance(error, ConnectionError):
            problem = f"{hub_id} cannot be stored in {constants.HF_HUB_CACHE} ({reason(error)})"
            return problem, "", "Check the free space and the permissions there, or set HF_HOME"
    problem = f"{hub_id} cannot be downloaded from {constants.ENDPOINT} ({reason(error)})"
    return problem, "", "Check the network, the proxy and HF_ENDPOINT, or name a local directory"


def reason(error: BaseException) -> str:
    """The first line of the cause that huggingface_hub gives."""
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0].rstrip(".") or type(cause).__name__
