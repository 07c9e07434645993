"""Writes the tables of `docs/` that the code knows better: options of the verbs, and families.

    python -m scripts.make_docs_tables

A page has a place for each, between `<!-- name -->` and `<!-- end -->`; what stands there is replaced. A test holds the
pages against `pages()`, so nothing of it is ever stale.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path

from mha2gqa.cli import VERBS
from mha2gqa.families.row import NOT_KNOWN, Family
from mha2gqa.families.table import TABLE
from mha2gqa.hosts.choice import HOSTS
from mha2gqa.options import Defaults, Options, Parameter, parameters, written
from tests.families.cases import KINDS

DOCS = Path(__file__).parents[1] / "docs"
_FAMILIES = "reference/families.md"


def pages() -> dict[str, str]:
    """Return the pages with tables, by their path below `docs/`, as they must be."""
    places = {f"commands/{verb}.md": {"options": _options(verb)} for verb in VERBS}
    families = {"tested": _tested(), "rows": _rows(), "hosts": _hosts(), "refused": _refused()}
    return {path: _filled(path, tables) for path, tables in (places | {_FAMILIES: families}).items()}


def _filled(path: str, tables: Mapping[str, str]) -> str:
    text = (DOCS / path).read_text(encoding="utf-8")
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        if text.count(start) != 1:
            raise ValueError(f"{path} has {text.count(start)} places for the table {name!r}, not one")
        before, _, after = text.partition(start)
        text = f"{before}{start}\n{table}\n{end}{after.partition(end)[2]}"
    return text


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = tuple(titles)
    lines = (titles, ("---",) * len(titles), *rows)
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _options(verb: str) -> str:
    options: type[Options] = getattr(import_module(f"mha2gqa.verbs.{verb}.options"), f"{verb.capitalize()}Options")
    return _table(("option", "default", "meaning"), map(_option, parameters(options).values()))


def _option(one: Parameter) -> tuple[str, str, str]:
    names = _flags(one)
    takes = (
        f" `{one.option.metavar}`" if one.option.metavar and not _choices(one) and not one.option.is_argument else ""
    )
    choices = f" One of {_listed(_choices(one))}." if _choices(one) else ""
    return _listed(names) + takes, _default(one), one.option.help + choices


def _flags(one: Parameter) -> tuple[str, ...]:
    spelled = f"--{one.name.replace('_', '-')}"
    if one.option.is_argument:
        return (one.name.upper(),)
    return (f"--no-{spelled[2:]}",) if one.default is True else one.option.flags or (spelled,)


def _choices(one: Parameter) -> tuple[str, ...]:
    metavar = one.option.metavar or ""
    return one.choices or (tuple(metavar.split("|")) if "|" in metavar else ())


def _default(one: Parameter) -> str:
    if one.default is MISSING:
        return "required"
    value = written(one.default)
    nothing = value is None or isinstance(value, bool | Mapping) or isinstance(one.option, Defaults)
    return "" if nothing else f"`{value}`"


def _tested() -> str:
    lists: dict[str, list[str]] = {}
    for kind, cases in KINDS.items():
        listed = {name for names in lists.values() for name in names}
        lists[kind] = sorted({case.model_type for case in cases} - listed)
    return _table(("", "model types"), ((f"{kind} ({len(names)})", _listed(names)) for kind, names in lists.items()))


def _rows() -> str:
    """Return what the rows say, one line for those that say the same; refusals have a table of their own."""
    said: dict[tuple[str, ...], list[str]] = {}
    for name, row in TABLE.items():
        if not row.refusal:
            said.setdefault(tuple(_said(row)), []).append(name)
    return _table(
        ("model types", "KV heads stand in", "G", "keys", "values", "rotary pairs"),
        ((_listed(sorted(names)), *cells) for cells, names in said.items()),
    )


def _said(row: Family) -> Iterator[str]:
    freedom = row.freedom
    yield _listed(row.counts)
    yield {"divisors": "divisors", "even": "even divisors", "ends": "1"}[row.groups]
    unrotated = f"; {freedom.unrotated_keys} where not rotated" if freedom.unrotated_keys else ""
    yield "averaged" if freedom == NOT_KNOWN else freedom.keys + unrotated
    yield "averaged" if freedom == NOT_KNOWN else freedom.values
    yield "" if freedom.keys == "fixed" else freedom.pairing


def _hosts() -> str:
    found = {name: [_host(name, module) for module in modules] for name, modules in sorted(HOSTS.items())}
    return _table(("model type", "written as, tried in this order"), ((f"`{a}`", _listed(b)) for a, b in found.items()))


def _host(name: str, module: str) -> str:
    host: str = import_module(f"mha2gqa.hosts.{module}").HOSTS[name].model_type
    return host


def _refused() -> str:
    reasons: dict[str, list[str]] = {}
    for name, row in TABLE.items():
        for reason in filter(None, (row.refusal, *row.refused_switches.values())):
            reasons.setdefault(reason, []).append(name)
    return _table(("model types", "why"), ((_listed(sorted(names)), f"{why}.") for why, names in reasons.items()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Write the pages."""
    for path, text in pages().items():
        (DOCS / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
