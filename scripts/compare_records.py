"""Holds what two versions of the code did in the same case against one another, for `compare_outputs.py`.

Exit codes, names of files and bytes must be the same. Where bytes are not, there are three exceptions: texts may differ
in durations and speeds; JSON that reports (`mha2gqa.json`, results of a sweep, `--json`) may say more than before, and
other durations, versions and machines; what `bench` measured may have any value. A difference is told as text.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

_TIMES = frozenset({"seconds", "tokens_per_second", "versions", "machine"}) | {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
}
_MEASURED = frozenset({"median", "low", "high", "disturbed", "bytes_per_second", "reason"})
"""Keys of what `bench` has measured."""
Rules = tuple[tuple[re.Pattern[str], str], ...]
_BARS = (re.compile(r"[\r\n]*[^\r\n]*\d+%\|[^\r\n]*\[[^\r\n]*\]"), "")
_RULES: Rules = (
    _BARS,
    (re.compile(r"\d[\d,.]* ?[kKMGT]?i?B/s\b"), "# B/s"),
    (re.compile(r"\d[\d,.]* ?(tokens/s|tokens a second)\b"), r"# \1"),
    (re.compile(r"(?<![\w.])\d[\d,.]*(?:e-\d+)? ?(ms|s|min|h)\b"), r"# \1"),
    (re.compile(r"^\S+\.py:\d+: (\w*Warning: .*)(?:\n  .*)?$", re.MULTILINE), r"\1"),
)
_MORE_RULES: Mapping[str, Rules] = {
    "sweep": (  # the column of seconds, in a terminal and on the page
        (re.compile(r"(?<=%) +[\d.]+(?=(?: +\w+)? *$)", re.MULTILINE), " #"),
        (re.compile(r'(<td class="number">)[\d.]+(?=</td><td class="">)'), r"\1#"),
    ),
    "bench": (
        (re.compile(r"<svg.*?</svg>", re.DOTALL), "<svg>"),
        (re.compile(r"-?\d[\d,.]*(?:e[+-]\d+)?"), "#"),
        (re.compile(r"[^\n]*the middle half of the times[^\n]*\n?"), ""),
        (re.compile(r"disturbed(; )?|not bound by the bytes: [^<\n]*|attention repeats the KV heads [^<\n]*"), ""),
    ),
}
"""By the kind of the case."""
_REPORTS = re.compile(r"(^|/)mha2gqa\.json$|sweep\.json$")
_SHOWN = 12
"""Lines of a difference that are shown."""


class Texts:
    """Texts that a driver has kept."""

    def __init__(self, results: Path) -> None:
        self._folder = results / "texts"

    def __getitem__(self, name: str) -> str:
        return (self._folder / name[:2] / name).read_bytes().decode("utf-8", "surrogateescape")


def differences(name: str, old: Record, new: Record, texts: tuple[Texts, Texts]) -> Iterator[str]:
    """Yield how two records of a case differ, nothing where they agree.

    Args:
        name: Of the case.
        old: Its record.
        new: Its record by the other code.
        texts: What both records refer to.
    """
    compare = Comparison(texts, name.partition("/")[0])
    for before, after in zip(old["steps"], new["steps"], strict=False):
        where = f"{name}: mha2gqa {' '.join(before.get('arguments', ['(none)']))}"
        yield from (f"{where}\n{text}" for text in compare.steps(before, after))
    if len(old["steps"]) != len(new["steps"]):
        yield f"{name}: {len(old['steps'])} steps were recorded, now {len(new['steps'])}: {new['steps'][-1]['failure']}"


class Comparison:
    """Compares the records of steps.

    Args:
        texts: What old and new records refer to.
        kind: Of the case: `family`, `bench`, ...
    """

    def __init__(self, texts: tuple[Texts, Texts], kind: str) -> None:
        self._texts = texts
        self._rules = (*_RULES, *_MORE_RULES.get(kind, ()))
        self._ignored = _TIMES | _MEASURED if kind == "bench" else _TIMES

    def steps(self, old: Record, new: Record) -> Iterator[str]:
        """Yield how two records of a step differ."""
        for key in ("code", "failure"):
            if old.get(key) != new.get(key):
                yield f"  {key}: {old.get(key)!r}, now {new.get(key)!r}"
        for key in ("out", "err"):
            if old.get(key) != new.get(key):
                yield from self._named(f"std{key}", self._texts[0][old[key]], self._texts[1][new[key]], self.output)
        yield from self._files(old.get("files", {}), new.get("files", {}))
        if old.get("removed") != new.get("removed"):
            yield f"  removed: {old.get('removed')}, now {new.get('removed')}"

    def _files(self, old: Record, new: Record) -> Iterator[str]:
        for name in sorted({*old, *new}):
            if name not in old or name not in new:
                yield f"  {name}: {'is not written any more' if name in old else 'was not written before'}"
            elif old[name]["sha256"] != new[name]["sha256"]:
                yield from self._file(name, old[name], new[name])

    def _file(self, name: str, old: Record, new: Record) -> Iterator[str]:
        if "text" not in old or "text" not in new:
            yield f"  {name}: other bytes ({old['size']:,}, now {new['size']:,})"
            return
        before, after = self._texts[0][old["text"]], self._texts[1][new["text"]]
        kind = self.json if _REPORTS.search(name) else self.text if name.endswith(".html") else bytes_of
        yield from self._named(name, before, after, kind)

    @staticmethod
    def _named(name: str, old: str, new: str, kind: Callable[[str, str], Iterator[str]]) -> Iterator[str]:
        lines = [*kind(old, new)]
        more = [f"... and {len(lines) - _SHOWN} more lines"] if len(lines) > _SHOWN else []
        if lines:
            yield f"  {name}:\n" + "\n".join(f"    {line[:300]}" for line in lines[:_SHOWN] + more)

    def output(self, old: str, new: str) -> Iterator[str]:
        """Yield how two outputs differ: JSON, a JSON value a line, or text."""
        if old.lstrip()[:1] in ("{", "["):
            whole = [_parsed([text]) for text in (old, new)]
            lines = [_parsed(text.splitlines()) for text in (old, new)]
            for before, after in (whole, lines):
                if before is not None and after is not None:
                    yield from self.values("", before, after)
                    return
        yield from self.text(old, new)

    def json(self, old: str, new: str) -> Iterator[str]:
        """Yield how two JSON texts differ."""
        before, after = _parsed([old]), _parsed([new])
        yield from self.values("", before, after) if before and after else self.text(old, new)

    def text(self, old: str, new: str) -> Iterator[str]:
        """Yield how two texts differ, durations apart."""
        before, after = self._plain(old), self._plain(new)
        if before != after:
            yield from bytes_of(before, after)

    def _plain(self, text: str) -> str:
        """Return a text without durations; where there are any, without the spaces that align what stands beside."""
        plain = text
        for pattern, replacement in self._rules:
            plain = pattern.sub(replacement, plain)
        return text if plain == text else re.sub(r" +(?=\n| |$)", "", plain)

    def values(self, path: str, old: Any, new: Any) -> Iterator[str]:
        """Yield the places at which a value lacks something, or has it otherwise."""
        if isinstance(old, dict) and isinstance(new, dict):
            for key in old:
                if key not in self._ignored:
                    missing = [f"{path}.{key}: is missing"] if key not in new else []
                    yield from missing or self.values(f"{path}.{key}", old[key], new[key])
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for place, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from self.values(f"{path}[{place}]", before, after)
        elif isinstance(old, str) and isinstance(new, str):
            yield from [f"{path}: {old!r}, now {new!r}"] if self._plain(old) != self._plain(new) else []
        elif type(old) is not type(new) or old != new:
            yield f"{path}: {old!r}, now {new!r}"


def bytes_of(old: str, new: str) -> Iterator[str]:
    """Yield the lines that are not the same in two texts which differ."""
    lines = [*difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)][2:]
    yield from lines or ["the same lines with other line ends, or other bytes"]


def _parsed(texts: list[str]) -> Any:
    """Return texts as JSON values, None where one is none."""
    try:
        return [json.loads(text) for text in texts]
    except ValueError:
        return None
