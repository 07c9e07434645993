"""`Latent`: what was asked for of latent attention, before any model is looked at.

Asked for is a latent of C numbers and a rotary key of R, or the cache of G KV heads, which text divides between the two
(`verbs/convert/latents.py`). What that becomes for an original is `aim.py`'s, which is read only where latents are
asked for: this file is read by every conversion, and knows no more than words and numbers.

Legend: C width of the latent, R of the shared rotary key, G KV heads whose cache it takes up.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.latent.widths import Widths, divisions, latent_change
from mha2gqa.targets.target import Aim, Change


@dataclass(frozen=True, kw_only=True)
class Latent(Widths):
    """One latent vector for all heads, and one rotary key that they share (MLA)."""

    @classmethod
    def recorded(cls, options: Mapping[str, Any]) -> "Latent":
        """Return the target of a record's options."""
        return cls(
            latent=int(options["latent"]),
            rope_width=int(options["rope-width"]),
            frequencies=str(options["rope-frequencies"]),
        )

    @classmethod
    def parse_change(cls, content: Mapping[str, Any]) -> Change:
        """Return what a record says that changed."""
        return latent_change(*(int(content[name]) for name in ("source_cached", "target_latent", "target_rope_width")))

    @classmethod
    def found(cls, model: Architecture, changed: AbstractSet[tuple[str, ...]]) -> dict[str, Any]:
        """Return the widths of a converted model."""
        del changed
        config: Any = model.text_config
        latent, width = config.kv_lora_rank, config.qk_rope_head_dim
        return {"cached": latent + width, "latent": latent, "rope_width": width}

    def settled(self, latent: int, rope_width: int, frequencies: str) -> "Latent":
        """Return what text has chosen."""
        return replace(self, latent=latent, rope_width=rope_width, groups=None, frequencies=frequencies)

    def options(self) -> Mapping[str, object]:
        """Return what was asked for."""
        widths = {"latent": self.latent, "rope-width": self.rope_width, "latent-like-groups": self.groups}
        return {name: width for name, width in widths.items() if width} | {"rope-frequencies": self.frequencies}

    def suffix(self) -> str:
        """Return `mla512-64`, `mla512`, or `mla-like4`."""
        if self.groups is not None:
            return f"mla-like{self.groups}"
        return "-".join(["mla" + str(self.latent), *([str(self.rope_width)] if self.rope_width else [])])

    def host(self, original: Original) -> Original:
        """Return the original in its own class, with what its tokenizer needs in the host's.

        Raises:
            FamilyError: The model cannot be written in latent attention.
            GroupsError: The widths cannot be.
            CheckpointError: The weights are quantised.
        """
        from mha2gqa.targets.latent.sources import whole

        refuse_quantised(original.config_json)
        divisions(whole(original.architecture), self)  # refused before what makes tensors is imported
        from mha2gqa.targets.latent.aim import as_source

        return as_source(original)

    def aim(self, original: Original) -> Aim:
        """Return what becomes of an original; where text has yet to choose, one of the choices.

        Raises:
            GroupsError: The widths cannot be.
            FamilyError: The model cannot be written in latent attention.
        """
        from mha2gqa.targets.latent.aim import aim_at_latent

        return aim_at_latent(original, self)
