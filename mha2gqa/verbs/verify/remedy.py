"""What to do about a checkpoint that is different: in words, and as the command for this very conversion.

A command is given where nothing has to be filled in and the tool would take it, so that it can be pasted.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mha2gqa.errors import OptionError
from mha2gqa.files.quantised import quantisation
from mha2gqa.methods import AUTO, AUTO_METHOD
from mha2gqa.model.kind import Kind, kind_of
from mha2gqa.record.commands import command_line
from mha2gqa.record.pair import Pair
from mha2gqa.texts.words import SELF, is_text
from mha2gqa.verbs.convert.again import command_of, free, is_there, possible, recorded
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.verify.levels import Finding, LoadLevel
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Remedy, Verification

_RECIPE = "uptrain.yaml"
"""Lies beside weights that were uptrained."""
_TOKENS = "20M"
"""Of a first training; what the papers call little."""
_REFERENCE_ALPHA = 0.01
"""Of the reference checkpoint the same, as a share of its pre-training."""
_HALF = ("float16", "bfloat16")
_NEXT: dict[str | None, str] = {None: "refit", "refit": "distil"}
"""How far a conversion was refined -> what loses less."""


def remedy_for(report: Verification, pair: Pair, options: VerifyOptions) -> Remedy | None:
    """Return what to do about the first finding; None where nothing is wrong, or nothing is known."""
    if not report.findings:
        return None
    first = report.findings[0]
    if first.level == "engine":
        return Remedy(text="serve it with another engine")
    if _is_rounded(first, report.load):
        return Remedy(
            text="rounding may explain that: verify again with --dtype float32",
            command=_command("verify", pair, options, _text_of(options) | {"dtype": "float32"}),
        )
    if first.level != "outputs":
        return Remedy(text="do not use the checkpoint, make it again", command=_made_again(pair))
    return _of_outputs(pair, options) if pair.conversion.effect == "loss" else None


def _is_rounded(finding: Finding, load: LoadLevel | None) -> bool:
    """Return whether a finding is a difference that 16 bits may make, which nobody can tell from a fault."""
    if load is None or load.dtype not in _HALF or finding.level != "load":
        return False
    return any(check.name == finding.guilty and check.tolerance is not None for check in load.checks)


def _of_outputs(pair: Pair, options: VerifyOptions) -> Remedy:
    """Return what loses less: another method, a refinement, a training."""
    made, kind = pair.conversion, kind_of(pair.original.architecture.outline)
    more = "take more KV heads" if made.asks_for_heads else "keep more of the cache"
    if made.asks_for_heads and not made.uptrain:
        if made.method not in (AUTO_METHOD, AUTO):
            command = _converted(pair, kind, made.refinement, AUTO_METHOD)
            return Remedy(text=f"convert it with --method {AUTO_METHOD}, or {more}", command=command)
        if made.refinement in _NEXT:
            further = _NEXT[made.refinement]
            does = {"refit": "refine", "distil": "distil"}[further]
            command = _converted(pair, kind, further, further)
            return Remedy(text=f"{does} it (--refine {further}), or {more}", command=command)
    if not _can_be_trained(pair, kind):
        return Remedy(text=more)
    longer = " longer" if made.uptrain else ""
    return Remedy(text=f"uptrain it{longer}, or {more}", command=_uptrained(pair, options))


def _converted(pair: Pair, kind: Kind, refine: str | None, name: str) -> str | None:
    """Return the command that converts the original as the record says, but by `aligned`, and refined so far.

    Args:
        pair: Both.
        kind: Of the original.
        refine: How far.
        name: What the name of the output gets.
    """
    source, usual = pair.original.source, ConvertOptions
    try:
        made = recorded(pair.conversion, _subject(pair), free(_beside(pair, name)))
        changes: dict[str, Any] = {"method": AUTO_METHOD, "refine": refine, "max_ppl_increase": usual.max_ppl_increase}
        plain = replace(made, data=(), column=None, tokens=usual.tokens, context=None, **changes)
    except OptionError:
        return None

    def ways() -> Iterator[ConvertOptions]:
        if made.data if refine is None else is_text(made.data):
            yield replace(plain, data=made.data, column=made.column, tokens=made.tokens, context=made.context)
        if source.is_reference or refine is None:
            yield plain
        if kind.predicts_next_token and kind.continues_text and kind.reads_tokens:
            yield replace(plain, data=(SELF,))

    found = possible(ways(), source)
    return None if found is None else command_of(found)


def _made_again(pair: Pair) -> str | None:
    """Return the command that makes the same; None where a training would have to follow."""
    if pair.conversion.command != "convert" or pair.conversion.uptrain:
        return None
    try:
        way = recorded(pair.conversion, _subject(pair), free(_beside(pair, "again")))
    except OptionError:
        return None
    found = possible([way], pair.original.source)
    return None if found is None else command_of(found)


def _can_be_trained(pair: Pair, kind: Kind) -> bool:
    """Return whether `uptrain` takes a model of this kind."""
    writes = kind.answers_text_with_text if kind.has_encoder else kind.predicts_next_token and kind.generates
    return kind.reads_tokens and writes and quantisation(pair.original.config_json) is None


def _uptrained(pair: Pair, options: VerifyOptions) -> str | None:
    """Return the command that trains the checkpoint, or trains it on for as long again by its own recipe."""
    output = {"output": free(_beside(pair, "uptrained"))}
    recipe, source = pair.converted / _RECIPE, pair.original.source
    if pair.conversion.uptrain:
        return _command("uptrain", pair, options, {"config": recipe} | output) if recipe.is_file() else None
    if kind_of(pair.original.architecture.outline).has_encoder:  # learns from tables of sources and targets
        return None
    if source.is_reference:
        return _command("uptrain", pair, options, {"alpha": _REFERENCE_ALPHA} | output)
    learned = tuple(pair.conversion.options.get("data") or ())
    text: dict[str, Any] = {"data": SELF}
    if is_text(learned) and is_there(learned):
        text = {"data": learned, "column": pair.conversion.options.get("column")}
    return _command("uptrain", pair, options, text | {"tokens": _TOKENS} | output)


def _text_of(options: VerifyOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("data", "column", "tokens", "context")}


def _command(verb: str, pair: Pair, options: VerifyOptions, more: dict[str, Any]) -> str:
    return command_line(verb, str(pair.converted), {"against": options.against} | more)


def _subject(pair: Pair) -> str | None:
    """Return what names the original here; None for the reference checkpoint."""
    source = pair.original.source
    return (source.argument or None) if source.hub_id or source.is_reference else str(_near(source.directory))


def _beside(pair: Pair, name: str) -> Path:
    return _near(pair.converted.resolve()).with_name(f"{pair.converted.resolve().name}-{name}")


def _near(path: Path) -> Path:
    """Return a path from where the command is run, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) and path != here else path
