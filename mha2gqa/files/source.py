"""Finds the model that the user named, and has its files in a local directory.

    find_source(None)               the reference checkpoint that ships with the package
    find_source("runs/model")       a local directory, used where it is
    find_source("org/name@tag")     a Hub repository, downloaded by `hub.py` into the shared cache

The files are not opened or judged here (`reader.py` does that).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import mha2gqa.reference
from mha2gqa.errors import SourceError, is_text
from mha2gqa.files import hub

HUB_ID = re.compile(r"(?P<hub_id>[^./~\\@][^/\\@]*/[^/\\@]+)(?:@(?P<revision>.+))?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that was found."""

    directory: Path
    """Local directory with the files."""
    name: str
    """Short name: the directory's, or the repository's without its organisation."""
    hub_id: str | None
    """`org/name` when it came from the Hub."""
    revision: str | None
    """The commit when it came from the Hub."""

    @property
    def argument(self) -> str:
        """The MODEL argument that names it again on another machine; empty for the reference checkpoint."""
        if self.hub_id:
            return f"{self.hub_id}@{self.revision}"
        return "" if self.is_reference else self.name

    @property
    def is_reference(self) -> bool:
        """Whether it is the checkpoint that ships with the package."""
        return self.directory.resolve() == reference_directory().resolve()


def find_source(model: str | None, *, small: bool = False) -> Source:
    """Find a model and, if it is on the Hub, download it.

    Args:
        model: Local directory or Hub id (`org/name`, `org/name@revision`); None is the reference checkpoint.
            A directory wins over a repository of the same name.
        small: Download the configuration and the index of the weights, and no weights.

    Raises:
        SourceError: There is no such directory or repository, or it cannot be reached or read.
    """
    if model is None:
        return _reference()
    try:
        path = Path(model).expanduser()
        # An empty name, from an unset variable in a script, must not become the current directory.
        is_there, is_file = bool(model) and path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:
        raise SourceError(f"Cannot open {model!r} ({error})", remedy="Check the path and its permissions") from error
    if is_there:
        return _local(path)
    if is_file:
        raise SourceError(
            f"{model!r} is a file",
            expected="the directory that holds config.json and the weights",
            remedy=f"Try {str(path.parent)!r}",
        )
    if not (match := HUB_ID.fullmatch(model)):
        raise SourceError(
            f"No such directory: {model!r}",
            expected="a directory that holds config.json and the weights, or a Hub id",
            remedy=f"Check the path; {hub.ID_FORM}",
        )
    hub_id, revision = match["hub_id"], match["revision"]
    directory = hub.download(hub_id, revision, small=small)
    return Source(directory=directory, name=hub_id.partition("/")[2], hub_id=hub_id, revision=directory.name)


def local_source(model: str | None) -> Source | None:
    """Find a model that is here; None for one of the Hub, of which nothing is asked.

    Raises:
        SourceError: There can be no such directory, nor repository.
    """
    if model is not None and HUB_ID.fullmatch(model) and not Path(model).expanduser().exists():
        return None
    return find_source(model)


def _local(path: Path) -> Source:
    whole = path.absolute()
    if not is_text(whole.resolve()):
        raise SourceError(
            f"The path {str(whole.resolve())!r} is not UTF-8",
            expected="names that are text",
            remedy="Rename what is not",
        )
    return Source(directory=path, name=Path(os.path.normpath(whole)).name, hub_id=None, revision=None)


def remote_weight_shapes(source: Source) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Read the names, dtypes and shapes of a Hub repository's tensors without its weights.

    Returns:
        Name to dtype (as safetensors spells it: `BF16`) and shape; None when the source is local or has
        no safetensors.

    Raises:
        CheckpointError: A header or the index is malformed, or the index names a file that is not there.
        SourceError: The Hub cannot be reached.
    """
    return hub.weight_shapes(source.hub_id, source.revision) if source.hub_id else None


def reference_directory() -> Path:
    """Return where the checkpoint that ships with the package lies."""
    return Path(mha2gqa.reference.__file__).parent / "checkpoint"


def _reference() -> Source:
    directory = reference_directory()
    if not (directory / "config.json").is_file():
        raise SourceError(
            f"The reference checkpoint is missing from {directory}",
            expected="config.json and the weights, which ship with the package",
            remedy="Reinstall mha2gqa, or name a model",
        )
    return Source(directory=directory, name="mha2gqa-reference", hub_id=None, revision=None)
