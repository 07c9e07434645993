"""What kind a model is, and what may be asked of it: told by its class and config alone, without running it.

transformers says in tables of names (`MODEL_FOR_..._MAPPING_NAMES`) what the head of each class is for. A class that
ships with a checkpoint derives from one of transformers' own, so all names of its ancestors count. Whoever needs
something of a model asks a `Kind` for it, and words the refusal.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

Head: TypeAlias = Literal["next token", "masked token", "none"]
"""What stands on top of a model's hidden states, and so what its `logits` are about."""

_MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
_TEXT_TO_TEXT = frozenset(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())
_HEADLESS = frozenset(
    name for names in MODEL_MAPPING_NAMES.values() for name in ([names] if isinstance(names, str) else names)
) - frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
"""Bare models; for Llama 4 transformers names the whole one among them."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is known of a class of models."""

    name: str
    """Of the class."""
    reads: str
    """Its main input: `input_ids` where that is tokens, else `pixel_values` or the like."""
    head: Head
    has_encoder: bool
    """Whether an encoder reads, and a decoder writes."""
    sees_ahead: bool
    """Whether a class that has a causal form is built as an encoder: its logits know the tokens they predict."""
    answers_text_with_text: bool
    """Whether it has an encoder that reads text, and a decoder that writes another."""
    generates: bool
    """Whether transformers' `generate` runs it."""

    @property
    def reads_tokens(self) -> bool:
        """Whether text alone is enough to run it."""
        return self.reads == "input_ids"

    @property
    def decodes(self) -> bool:
        """Whether it goes on from what it has read, with a cache."""
        return self.has_encoder or self.head == "next token"

    @property
    def predicts_next_token(self) -> bool:
        """Whether the logits at a position are a guess about the next token, so that its loss means something."""
        return self.head == "next token" and not self.sees_ahead

    @property
    def continues_text(self) -> bool:
        """Whether it can write text from its beginning."""
        return self.generates and not self.has_encoder

    @property
    def gives_embeddings(self) -> bool:
        """Whether its hidden states are all that it gives."""
        return self.head == "none" and not self.has_encoder


def kind_of(model: PreTrainedModel) -> Kind:
    """Return what kind a model is; one on the meta device will do."""
    config = model.config
    names = {one.__name__ for one in type(model).__mro__}
    has_encoder = bool(config.is_encoder_decoder)
    head = _head(names, has_encoder=has_encoder)
    has_causal_form = config.model_type.removesuffix("_gqa") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_encoder = has_causal_form and getattr(config, "is_decoder", None) is False
    return Kind(
        name=type(model).__name__,
        reads=model.main_input_name,
        head=head,
        has_encoder=has_encoder,
        sees_ahead=is_encoder and head == "next token" and not has_encoder,
        answers_text_with_text=bool(names & _TEXT_TO_TEXT),
        generates=model.can_generate(),
    )


def _head(names: set[str], *, has_encoder: bool) -> Head:
    """Return what a class's head is for; another table of transformers' is one more line here."""
    if names & _MASKED and not has_encoder:  # BART's class fills masks as well, by what its decoder writes next
        return "masked token"
    return "none" if names & _HEADLESS else "next token"
