"""Sets one key in the YAML header of a `README.md`, and leaves every other byte of the file as it is.

Neither the text nor the other keys nor the comments between them are written anew. A header in which that
cannot be done (one key a line is the rule) is refused. What the key holds is decided elsewhere; see `card.py`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mha2gqa.errors import OutputError
from mha2gqa.files.working import replace_file

_HEADER = re.compile(r"\A(\s*---(?:\r\n|\r|\n))(.*?)(^---[ \t]*$)", re.DOTALL | re.MULTILINE)
_LAST_COMMENTS = re.compile(r"(?:^[ \t]*(?:#[^\n]*)?\n)*\Z", re.MULTILINE)


@dataclass(frozen=True)
class FrontMatter:
    """A file with its header cut out; together they are the file."""

    path: Path
    before: str
    header: str
    after: str

    @property
    def content(self) -> dict[str, Any]:
        """The header's keys and values.

        Raises:
            OutputError: It is no YAML, or no mapping.
        """
        try:
            content = yaml.safe_load(self.header) or {}
        except yaml.YAMLError as error:
            raise _refusal(f"The header of {self.path} is no YAML: {error}") from error
        if not isinstance(content, dict):
            raise _refusal(f"The header of {self.path} holds no keys")
        return content

    def with_key(self, key: str, value: Any) -> "FrontMatter":
        """Return the file with another value of a key, which is added where it is not there.

        Raises:
            OutputError: The notation of the header does not allow it.
        """
        block = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000)
        if "\r\n" in self.before:
            block = block.replace("\n", "\r\n")
        start, end = self._span(key)
        changed = FrontMatter(self.path, self.before, self.header[:start] + block + self.header[end:], self.after)
        wanted = {name: held for name, held in self.content.items() if name != key}
        if {name: held for name, held in changed._parsed().items() if name != key} != wanted:
            raise _refusal(f"The header of {self.path} is written in a way in which {key} cannot be set alone")
        return changed

    def _parsed(self) -> dict[str, Any]:
        """Return the keys and values, nothing where the header cannot be read."""
        try:
            return self.content
        except OutputError:
            return {}

    def _span(self, key: str) -> tuple[int, int]:
        """Return where a key and its value begin and end in the header; both the end, where it is not there."""
        root = yaml.compose(self.header, Loader=yaml.SafeLoader)
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        starts = [name.start_mark.index for name, _ in pairs] + [len(self.header)]
        for (name, _), end in zip(pairs, starts[1:], strict=True):
            if name.value == key:
                start = name.start_mark.index
                comments = _LAST_COMMENTS.search(self.header[start:end])
                return start, start + comments.start() if comments else end
        return len(self.header), len(self.header)

    def write(self) -> None:
        """Put the file in the place of the old one, or leave the old one.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            replace_file(self.path, f"{self.before}{self.header}{self.after}".encode())
        except OSError as error:
            raise OutputError(f"Writing {self.path} failed: {error.strerror}", remedy="It is as it was") from error


def read_front_matter(path: Path) -> FrontMatter:
    """Read a file; one that is absent is empty, and one without a header gets one.

    Raises:
        OutputError: It cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(f"{path} cannot be read: {error}") from error
    if match := _HEADER.match(text):
        return FrontMatter(path, match[1], match[2], text[match.start(3) :])
    newline = "\r\n" if "\r\n" in text else "\n"
    return FrontMatter(path, f"---{newline}", "", f"---{newline}{text}")


def _refusal(problem: str) -> OutputError:
    return OutputError(
        problem, expected="a header in YAML, one `key: value` a line", remedy="Repair it, or leave out --write-card"
    )
