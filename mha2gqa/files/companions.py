"""Divides a directory into what belongs to the checkpoint, beside its config and weights, and what stays behind.

    by name        what `belongs.py` knows
    by reference   code that `auto_map` names, with what it imports
                   folders that `modules.json` names, with their weights

Hidden files are never looked at. What belongs has to be an ordinary file of the directory itself (`plain.py`).
"""

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mha2gqa.errors import CheckpointError, visible
from mha2gqa.files.belongs import OWN, belongs, may_hold
from mha2gqa.files.plain import State, load_json, look, unreadable

_LARGEST = 100 << 20
"""Bytes of a file that belongs by its name; the largest tokenizers have a third of that."""
_MOST = 1000
"""Files that belong; a checkpoint with its own code and several tokenizers has fifty."""
_LARGEST_CODE = 1 << 20
_MODULES = "modules.json"
_SPEECH = ("alphabet.json", "language_model")
"""What stands for a processor of speech with a language model, and where that is."""
_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.+)([\w.]*)[ \t]+import[ \t]+(\([^)]{0,2000}|[^\n(]*)", re.MULTILINE)


@dataclass(frozen=True)
class Belongings:
    """What lies beside the config and the weights of a checkpoint."""

    companions: tuple[Path, ...]
    """Files to copy, relative to the directory."""
    left_behind: tuple[str, ...]
    """Names of the files, and with a slash of the folders, of which nothing is copied."""
    states: Mapping[Path, State]
    """How each companion was."""


def find_belongings(directory: Path, config: dict[str, Any], weights: Iterable[str]) -> Belongings:
    """Divide a directory.

    Args:
        directory: The checkpoint's.
        config: Its config.
        weights: Names of the files that its weights are read from.

    Raises:
        CheckpointError: What belongs is no ordinary file, or there is no end of it.
    """
    tree = _Tree(directory)
    try:
        modules = _modules(directory)
        folders = [*_named_folders(directory, modules)]
        folders += [PurePath(_SPEECH[1])] if os.path.lexists(directory / _SPEECH[0]) else []
        found = {*tree.by_name(), *(path for folder in folders for path in tree.below(folder))}
        types = [str(one.get("type") or "") for one in modules]
        taken = {*found, *tree.code(found, [*_referred(tree, config, found), *types])}
        if len(taken) > _MOST:
            raise CheckpointError(
                f"{directory} holds {len(taken):,} files that belong to a checkpoint by their names",
                expected=f"at most {_MOST:,}: a tokenizer, a licence, code and the like",
                remedy="Move those away that nothing needs",
            )
        states = {directory / path: look(directory / path, directory) for path in sorted(taken)}
        return Belongings(tuple(map(Path, sorted(taken))), tuple(sorted(tree.rest({*weights, *OWN}, taken))), states)
    except OSError as error:
        raise unreadable(directory, error) from error


class _Tree:
    """A directory by the names in it; links are files here, whatever they name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def by_name(self) -> Iterator[PurePath]:
        """Yield the files that belong by their names."""
        for path in self._listing(PurePath()):
            if not self.is_folder(path):
                if belongs(path) and self._is_small(path):
                    yield path
            elif may_hold(path.name) and not (self.directory / path / "config.json").is_file():
                yield from (one for one in self.below(path) if belongs(one) and self._is_small(one))

    def below(self, folder: PurePath) -> Iterator[PurePath]:
        """Yield the files below a folder, no more than anybody needs; a folder that is a link is one."""
        files = self._all_below(folder)
        return itertools.islice(files, _MOST + 1) if os.path.lexists(self.directory / folder) else iter(())

    def _all_below(self, folder: PurePath) -> Iterator[PurePath]:
        if not self.is_folder(folder):
            yield folder
            return
        for path in self._listing(folder):
            yield from self._all_below(path)

    def _listing(self, folder: PurePath) -> list[PurePath]:
        with os.scandir(self.directory / folder) as entries:
            return sorted(folder / entry.name for entry in entries if not entry.name.startswith("."))

    def is_folder(self, path: PurePath) -> bool:
        """Return whether there is a folder, and no link to one."""
        whole = self.directory / path
        return whole.is_dir() and not whole.is_symlink()

    def _is_small(self, path: PurePath) -> bool:
        return (self.directory / path).lstat().st_size <= _LARGEST

    def code(self, found: Iterable[PurePath], references: Iterable[str]) -> Iterator[PurePath]:
        """Yield the files of code that belong or are referred to (`module.Class`), and what they import."""
        pending = [path for path in found if path.suffix == ".py"]
        for reference in references:
            pending += self._modules(PurePath(), reference.rpartition(".")[0])
        seen: set[PurePath] = set()
        while pending and len(seen) <= _MOST:
            path = pending.pop()
            if path not in seen:
                seen.add(path)
                yield path
                pending += self._imported(path)

    def _imported(self, path: PurePath) -> Iterator[PurePath]:
        look(self.directory / path, self.directory)
        with (self.directory / path).open("rb") as file:
            text = file.read(_LARGEST_CODE).decode("utf-8", "replace")
        for dots, module, names in _IMPORT.findall(text):
            folder = PurePath(*path.parent.parts[: len(path.parent.parts) + 1 - len(dots)])
            for one in [module] if module else re.findall(r"\w+", names):
                yield from self._modules(folder, one)

    def _modules(self, folder: PurePath, name: str) -> list[PurePath]:
        """Return the file of a module, or of a package, and of the packages that it lies in."""
        parts = name.split(".")
        if not all(part.isidentifier() for part in parts):
            return []
        path = folder.joinpath(*parts)
        found = [path.with_name(f"{path.name}.py"), *(one / "__init__.py" for one in (path, *path.parents))]
        return [one for one in found if os.path.lexists(self.directory / one)]

    def rest(self, read: set[str], taken: set[PurePath]) -> Iterator[str]:
        """Yield the names of what is neither read nor taken; a folder of which nothing is stands for all in it."""
        used = {path.parts for path in taken} | {(name,) for name in read}
        entered = {parts[:number] for parts in used for number in range(1, len(parts))}
        pending = [PurePath()]
        while pending:
            for path in self._listing(pending.pop()):
                if path.parts in entered:
                    pending.append(path)
                elif path.parts not in used:
                    yield visible(path.as_posix()) + "/" * self.is_folder(path)


def _modules(directory: Path) -> list[dict[str, Any]]:
    """Return what `modules.json` lists, where there is one."""
    path = directory / _MODULES
    if not os.path.lexists(path):
        return []
    content = load_json(path, directory)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise CheckpointError(f"{path} is no list of modules", expected="what sentence-transformers writes")
    return content


def module_folders(directory: Path) -> list[PurePath]:
    """Return the folders that `modules.json` names; they come along with all that is in them.

    Raises:
        CheckpointError: It is malformed, or names something elsewhere.
    """
    return list(_named_folders(directory, _modules(directory)))


def _named_folders(directory: Path, modules: list[dict[str, Any]]) -> Iterator[PurePath]:
    for name in (str(one.get("path") or "") for one in modules):
        if "\\" in name or any(part.startswith(".") or not part for part in name.split("/") if name):
            raise CheckpointError(
                f"{directory / _MODULES} names the folder {name!r}",
                expected="a folder in the same directory",
                remedy="Do not use a checkpoint from a source that you do not trust",
            )
        if name:
            yield PurePath(name)


def _referred(tree: _Tree, config: dict[str, Any], found: Iterable[PurePath]) -> Iterator[str]:
    """Yield the classes and functions, as `module.Class`, that the configs of a checkpoint name as code beside them."""
    small = (path for path in sorted(found) if len(path.parts) == 1 and path.name.endswith("config.json"))
    for content in (config, *(_load_if_sound(tree.directory / path, tree.directory) for path in small)):
        auto_map, pipelines = content.get("auto_map"), content.get("custom_pipelines")
        values: list[Any] = [*auto_map.values()] if isinstance(auto_map, dict) else [auto_map]
        if isinstance(pipelines, dict):
            values += [one.get("impl") for one in pipelines.values() if isinstance(one, dict)]
        for value in values:
            names = value if isinstance(value, list) else [value]
            yield from (name for name in names if isinstance(name, str) and "--" not in name)  # in another repository


def _load_if_sound(path: Path, directory: Path) -> dict[str, Any]:
    """Return a config that is copied whatever is in it; one that cannot be read names no code."""
    try:
        content = load_json(path, directory)
    except CheckpointError:
        return {}
    return content if isinstance(content, dict) else {}


def copy_companions(directory: Path, companions: Iterable[Path], output: Path) -> None:
    """Copy the companions of a checkpoint into its result.

    Raises:
        CheckpointError: One cannot be read any more.
        OSError: The result cannot be written.
    """
    for companion in companions:
        source, target = directory / companion, output / companion
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            look(source, directory)
            shutil.copyfile(source, target)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.filename == str(source):
                raise unreadable(source, error) from error
            raise
