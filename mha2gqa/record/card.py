"""The model card of a converted checkpoint: a `README.md` as the Hub reads it.

Licence, language and task are taken over from the source's card, when it has one.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mha2gqa.files.finish import CARD
from mha2gqa.files.reader import read_json
from mha2gqa.files.source import Source
from mha2gqa.methods import AUTO, find_method
from mha2gqa.record.commands import command_line
from mha2gqa.record.conversion import Outcome

ENGINES = Path(__file__).parents[1] / "engines" / "classes.json"
"""Model type -> engines that run it."""
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")
_ORDER = (
    *("base_model", "datasets", "language", "library_name", "license", "license_name", "license_link"),
    *("pipeline_tag", "tags"),
)
"""Keys of the header as huggingface_hub writes them; itself it is slow to import."""
_HEADER = re.compile(r"\A\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)

_TEXT = """\
# {title}

{base} with **{instead}**, {verb} by mha2gqa:

    {command}

| | original | this checkpoint |
|---|---|---|
{facts}
| KV cache, bytes per token | {cache_before:,} | {cache_after:,} |{cache_at}

{quality} `mha2gqa.json` records the source, the options, the versions and a checksum of every tensor.
{architecture}{notes}
"""

_UNTRAINED = "The architecture and all other weights are those of the original."

_OUTSIDE = " outside of attention"

_QUALITY = {
    "merged": "{made} without training, which costs quality: measure it on your own data before you rely on it.",
    "refined": "{made}, and the attention was improved on {text}. That costs quality all the same: measure it on your "
    "own data before you rely on it.",
    "repeated": "KV heads were repeated, which changes no output.",
}


def card_of(outcome: Outcome, source: Source) -> str:
    """Return the card of a conversion."""
    base = source.hub_id or source.name
    known = _inherited(source.directory / CARD) | {"base_model": source.hub_id, "library_name": "transformers"}
    known["tags"] = list(dict.fromkeys(["mha2gqa", *outcome.change.tags]))
    header = {key: known[key] for key in _ORDER if known.get(key) is not None}
    facts = outcome.change.facts
    text = _TEXT.format(
        title=outcome.output.resolve().name,
        base=f"[{base}](https://huggingface.co/{base})" if source.hub_id else base,
        instead=", ".join(fact.instead for fact in facts),
        facts="\n".join(f"| {fact.label} | {_number(fact.before)} | {_number(fact.after)} |" for fact in facts),
        verb="converted" if outcome.command == "convert" else "expanded",
        command=command_line(outcome.command, source.argument, outcome.options),
        cache_before=outcome.cache_before,
        cache_after=outcome.cache_after,
        cache_at="".join(
            f"\n| KV cache of {tokens:,} tokens, bytes | {before:,} | {after:,} |"
            for tokens, (before, after) in outcome.cache_at.items()
        ),
        architecture=_architecture(outcome) + _engines(outcome.model_type),
        notes="".join(f"\n\n{note}" for note in outcome.notes),
        quality=_quality(outcome),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()}\n---\n\n{text}"


def extended_card(converted: Path, name: str, section: str) -> str:
    """Return the card of a converted checkpoint that was trained: the conversion's, and a section about the training.

    What the conversion's card says of quality without training is left out.

    Args:
        converted: Where the conversion's card is; without one the section stands alone.
        name: Of the result.
        section: Markdown, with its heading.
    """
    path = converted / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"
    text = text.replace(f"# {converted.resolve().name}\n", f"# {name}\n", 1).replace(_UNTRAINED + "\n", "")
    for quality in _QUALITY.values():
        text = re.sub(re.escape(f"{quality} ").replace(re.escape("{made}"), ".*"), "", text)
    return f"{text.rstrip()}\n\n{section}"


def _quality(outcome: Outcome) -> str:
    if outcome.change.effect != "loss":
        return _QUALITY["repeated"]
    was_improved = outcome.text and ("refine" in outcome.options or outcome.method == AUTO)
    made = outcome.change.made
    if outcome.method is not None:
        words = find_method(outcome.method).words
        made = f"{made}, and {words[0].lower()}{words[1:]}" if made else words
    return _QUALITY["refined" if was_improved else "merged"].format(made=made, text=outcome.text)


def _architecture(outcome: Outcome) -> str:
    if outcome.rehosted_from is None:
        return _UNTRAINED
    computed = ", ".join(f"`{name}`" for name in outcome.recomputed) or "none"
    is_fitted = not outcome.groups and any(row["action"] == "changed" for row in outcome.tensors)
    return (
        f"The original's class, `{outcome.rehosted_from}`, {outcome.change.lacks}: this checkpoint is the "
        f"model written as `{outcome.model_type}`. Tensors that were re-ordered or computed for that, before "
        f"anything else was done to them: {computed}. All others{_OUTSIDE * is_fitted} are "
        "those of the original, under other names."
    )


def _engines(model_type: str) -> str:
    """Return which engines were seen to run the class, by `make engines`."""
    known = read_json(ENGINES).get(model_type, [])
    return f"\n\nEngines that ran tiny checkpoints of `{model_type}` as transformers does: {', '.join(known)}." * bool(
        known
    )


def _number(value: Any) -> str:
    return "none" if value is None else f"{value}"


def _inherited(card: Path) -> dict[str, Any]:
    """Return what carries over from the source's card; a card that cannot be read carries nothing."""
    try:
        found = _HEADER.match(card.read_text(encoding="utf-8"))
        data = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: data[key] for key in _INHERITED if key in data} if isinstance(data, dict) else {}
