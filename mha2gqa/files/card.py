"""The model card of a converted checkpoint: a `README.md` as the Hub reads it.

Licence, language and task are taken over from the source's card, when it has one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from mha2gqa.files.source import Source
from mha2gqa.methods import find_method

_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "datasets")

_TEXT = """\
# {title}

{base} with **{after} KV heads instead of {before}**, {verb} by mha2gqa:

    {command}

| | original | this checkpoint |
|---|---|---|
| KV heads | {before} | {after} |
| KV cache, bytes per token | {cache_before:,} | {cache_after:,} |

{quality} `mha2gqa.json` records the source, the options, the versions and a checksum of every tensor.
{architecture}
"""

_UNTRAINED = "The architecture and all other weights are those of the original."

_QUALITY = {
    "convert": "{made} without training, which costs quality: measure it on your own data before you rely on it.",
    "refined": "{made}, and the attention was improved on {text}. That costs quality all the same: measure it on your "
    "own data before you rely on it.",
    "expand": "KV heads were repeated, which changes no output.",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says."""

    name: str
    command: str
    """`convert` or `expand`."""
    command_line: str
    method: str | None
    """How heads were merged; None where none were."""
    heads_before: int
    heads_after: int
    cache_before: int
    """Bytes of KV cache a token of the original."""
    cache_after: int
    """The same of the result."""
    improved_on: str | None = None
    """The text that a refinement learned from."""
    rehosted_from: str | None = None
    """Model type of the original, where the result's is another, `model_type`."""
    model_type: str = ""
    recomputed: tuple[str, ...] = ()
    """Tensors that were computed for the other class, one name for all layers."""


def write_card(directory: Path, facts: CardFacts, source: Source) -> None:
    """Write `README.md` into `directory`."""
    base = source.hub_id or source.name
    data = ModelCardData(
        base_model=source.hub_id,
        library_name="transformers",
        tags=["mha2gqa", "mqa" if facts.heads_after == 1 else "gqa"],
        **_inherited(source.directory / "README.md"),
    )
    text = _TEXT.format(
        title=facts.name,
        base=f"[{base}](https://huggingface.co/{base})" if source.hub_id else base,
        before=facts.heads_before,
        after=facts.heads_after,
        verb="converted" if facts.command == "convert" else "expanded",
        command=facts.command_line,
        cache_before=facts.cache_before,
        cache_after=facts.cache_after,
        architecture=_architecture(facts),
        quality=_QUALITY["refined" if facts.improved_on else facts.command].format(
            made=find_method(facts.method).words if facts.method else "", text=facts.improved_on
        ),
    )
    (directory / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")), encoding="utf-8")


def extend_card(converted: Path, directory: Path, name: str, section: str) -> None:
    """Write the card of a converted checkpoint that was trained: the conversion's, and a section about the training.

    What the conversion's card says of quality without training is left out.

    Args:
        converted: Where the conversion's card is; without one the section stands alone.
        directory: Where to write.
        name: Of the result.
        section: Markdown, with its heading.
    """
    path = converted / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {name}\n"
    text = text.replace(f"# {converted.resolve().name}\n", f"# {name}\n", 1).replace(_UNTRAINED + "\n", "")
    for quality in _QUALITY.values():
        text = re.sub(re.escape(f"{quality} ").replace(re.escape("{made}"), ".*"), "", text)
    (directory / "README.md").write_text(f"{text.rstrip()}\n\n{section}", encoding="utf-8")


def _architecture(facts: CardFacts) -> str:
    if facts.rehosted_from is None:
        return _UNTRAINED
    computed = ", ".join(f"`{name}`" for name in facts.recomputed) or "none"
    return (
        f"The original's class, `{facts.rehosted_from}`, knows only multi-head attention: this checkpoint is the same "
        f"model written as `{facts.model_type}`. Tensors that were re-ordered or computed for that, before anything "
        f"else was done to them: {computed}. All others are those of the original, under other names."
    )


def _inherited(card: Path) -> dict[str, Any]:
    """Return what carries over from the source's card; a card that cannot be read carries nothing."""
    try:
        data = ModelCard.load(card).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: data[key] for key in _INHERITED if key in data}
