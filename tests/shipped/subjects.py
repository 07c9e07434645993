"""Tiny random models of every family whose grouped class ships with the checkpoint, and how each is run.

A `Subject` names the class that wrote the source; `tests/families/tiny.py` fills its config. `repeated` makes the
oracle: the weights of a grouped model with every key and value head repeated, which transformers' own class must
answer like. It knows how each family keeps its heads, and nothing of mha2gqa.

Legend: H query heads, G key/value heads, R = H/G, E width of a head, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.families.tiny import tiny_config

HEADS, WIDTH, VOCABULARY = 4, 16, 128
Inputs = dict[str, torch.Tensor]
PARTS = ("decoder_key_value_heads", "cross_key_value_heads", "encoder_key_value_heads")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One family."""

    model_type: str
    architecture: str
    """The class that wrote the source."""
    auto: str
    """The auto class that loads it."""
    overrides: dict[str, Any] = field(default_factory=dict)
    seq2seq: bool = False
    generates: bool = True
    sdpa: bool = True
    """The class has an implementation with SDPA."""

    def __str__(self) -> str:
        return self.model_type

    def native(self) -> PreTrainedModel:
        """transformers' own model, randomly filled."""
        config = tiny_config(self.model_type, **self.overrides)
        config.architectures = [self.architecture]
        return filled(getattr(transformers, self.architecture)(config))

    def inputs(self, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
        if self.model_type == "vit":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        if self.model_type in ("whisper", "speech_to_text"):
            shape = (2, 16, 40) if self.model_type == "whisper" else (2, 40, 16)
            return {"input_features": torch.randn(*shape, generator=generator)}
        return {"input_ids": ids, "attention_mask": mask}

    def forward_inputs(self) -> Inputs:
        both = {"decoder_input_ids": self.inputs(1)["input_ids"] if "input_ids" in self.inputs() else _ids(1)}
        return self.inputs() | (both if self.seq2seq else {})


def _ids(seed: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))


_MASKED = {"auto": "AutoModelForMaskedLM", "generates": False}
_SEQ2SEQ = {"auto": "AutoModelForSeq2SeqLM", "seq2seq": True}
_SPEECH = {"auto": "AutoModelForSpeechSeq2Seq", "seq2seq": True}
_NO_DROP = {"layerdrop": 0.0}

SUBJECTS = (
    Subject(model_type="gpt2", architecture="GPT2LMHeadModel", auto="AutoModelForCausalLM"),
    Subject(model_type="opt", architecture="OPTForCausalLM", auto="AutoModelForCausalLM"),
    Subject(model_type="bloom", architecture="BloomForCausalLM", auto="AutoModelForCausalLM", sdpa=False),
    Subject(model_type="mpt", architecture="MptForCausalLM", auto="AutoModelForCausalLM", sdpa=False),
    Subject(model_type="bert", architecture="BertForMaskedLM", **_MASKED),
    Subject(model_type="roberta", architecture="RobertaForMaskedLM", **_MASKED),
    Subject(model_type="xlm-roberta", architecture="XLMRobertaForMaskedLM", **_MASKED),
    Subject(model_type="camembert", architecture="CamembertForMaskedLM", **_MASKED),
    Subject(model_type="electra", architecture="ElectraForMaskedLM", **_MASKED),
    Subject(model_type="distilbert", architecture="DistilBertForMaskedLM", **_MASKED),
    Subject(
        model_type="deberta",
        architecture="DebertaForMaskedLM",
        overrides={"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        sdpa=False,
        **_MASKED,
    ),
    Subject(
        model_type="deberta-v2",
        architecture="DebertaV2ForMaskedLM",
        overrides={"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True},
        sdpa=False,
        **_MASKED,
    ),
    Subject(
        model_type="vit",
        architecture="ViTForImageClassification",
        auto="AutoModelForImageClassification",
        overrides={"image_size": 16, "patch_size": 4},
        generates=False,
    ),
    Subject(model_type="t5", architecture="T5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="mt5", architecture="MT5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="umt5", architecture="UMT5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="bart", architecture="BartForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="mbart", architecture="MBartForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="marian", architecture="MarianMTModel", **_SEQ2SEQ),
    Subject(model_type="pegasus", architecture="PegasusForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="m2m_100", architecture="M2M100ForConditionalGeneration", **_SEQ2SEQ),
    Subject(
        model_type="whisper",
        architecture="WhisperForConditionalGeneration",
        overrides={"num_mel_bins": 16, "max_source_positions": 20},
        **_SPEECH,
    ),
    Subject(
        model_type="speech_to_text",
        architecture="Speech2TextForConditionalGeneration",
        overrides={"input_feat_per_channel": 16, "conv_channels": 16},
        **_SPEECH,
    ),
)


@torch.no_grad()
def filled(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight random, so that no tensor can be lost or swapped without a change in the logits."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.15 if parameter.dim() > 1 else parameter + noise * 0.1)
    return model.eval()
