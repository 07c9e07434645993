"""Tiny random models of every family whose grouped class ships with the checkpoint, and how each is run.

A `Subject` names the class that wrote the source; `tests/families/tiny.py` fills its config. `averaged` makes the
oracle: transformers' own class with every key and value head replaced by the mean of its group, which the converted
model must answer like. It knows how each family keeps its heads, and nothing of mha2gqa.

Legend: H query heads, G key/value heads, R = H/G, E width of a head, D model width.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.families.tiny import tiny_config

HEADS, WIDTH, VOCABULARY = 4, 16, 128
Inputs = dict[str, torch.Tensor]
_KV = re.compile(r"(?:^|\.)(k|v|key|value|k_proj|v_proj|k_lin|v_lin|key_proj|value_proj)\.(weight|bias)$")
_FUSED = re.compile(r"(attn\.c_attn|Wqkv)\.(weight|bias)$")
_INTERLEAVED = re.compile(r"(query_key_value|in_proj)\.(weight|bias)$")


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
        if self.auto == "AutoModelForImageClassification":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        if self.auto == "AutoModelForCTC":
            return {"input_values": torch.randn(2, 160, generator=generator)}
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
_IMAGES = {
    "auto": "AutoModelForImageClassification",
    "overrides": {"image_size": 16, "patch_size": 4},
    "generates": False,
}
_AUDIO = {
    "auto": "AutoModelForCTC",
    "overrides": {"conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2)},
    "generates": False,
}
_SPEECH = {"auto": "AutoModelForSpeechSeq2Seq", "seq2seq": True}

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
    Subject(
        model_type="bert-generation",
        architecture="BertGenerationDecoder",
        overrides={"is_decoder": True},
        auto="AutoModelForCausalLM",
    ),
    Subject(model_type="data2vec-text", architecture="Data2VecTextForMaskedLM", **_MASKED),
    Subject(model_type="ernie", architecture="ErnieForMaskedLM", **_MASKED),
    Subject(model_type="roberta-prelayernorm", architecture="RobertaPreLayerNormForMaskedLM", **_MASKED),
    Subject(model_type="xlm-roberta-xl", architecture="XLMRobertaXLForMaskedLM", **_MASKED),
    Subject(model_type="distilbert", architecture="DistilBertForMaskedLM", overrides={"dim": 64}, **_MASKED),
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
    Subject(model_type="vit", architecture="ViTForImageClassification", **_IMAGES),
    Subject(model_type="deit", architecture="DeiTForImageClassification", **_IMAGES),
    Subject(model_type="dinov2", architecture="Dinov2ForImageClassification", **_IMAGES),
    Subject(model_type="wav2vec2", architecture="Wav2Vec2ForCTC", **_AUDIO),
    Subject(model_type="hubert", architecture="HubertForCTC", **_AUDIO),
    Subject(model_type="t5", architecture="T5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="mt5", architecture="MT5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="umt5", architecture="UMT5ForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="bart", architecture="BartForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="mbart", architecture="MBartForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="blenderbot", architecture="BlenderbotForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="blenderbot-small", architecture="BlenderbotSmallForConditionalGeneration", **_SEQ2SEQ),
    Subject(model_type="plbart", architecture="PLBartForConditionalGeneration", **_SEQ2SEQ),
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
        sdpa=False,
        overrides={"input_feat_per_channel": 16, "conv_channels": 16},
        **_SPEECH,
    ),
)


@torch.no_grad()
def filled(model: PreTrainedModel) -> PreTrainedModel:
    """Every weight random, so that no tensor can be lost or swapped without a change in the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name in model._keys_to_ignore_on_save:  # a sinusoidal table
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.15 if parameter.dim() > 1 else parameter + noise * 0.1)
    return model.eval()


@torch.no_grad()
def averaged(native: PreTrainedModel, groups: Mapping[str, int]) -> PreTrainedModel:
    """The model with each head's keys and values replaced by the mean of its group's.

    Args:
        native: transformers' own model.
        groups: G of each kind of attention, `decoder`, `cross` and `encoder`; a kind that is missing stays.
    """
    model = copy.deepcopy(native)
    for name, parameter in model.named_parameters():
        number = groups.get(part(name), HEADS)
        rows = parameter.T if name.endswith("c_attn.weight") else parameter
        if _KV.search(name):
            rows.copy_(_mean(rows.unflatten(0, (HEADS, -1)), number).flatten(0, 1))
        elif _FUSED.search(name):
            heads = rows.unflatten(0, (3, HEADS, -1))
            heads[1:] = torch.stack([_mean(half, number) for half in heads[1:]])
            rows.copy_(heads.flatten(0, 2))
        elif _INTERLEAVED.search(name):
            heads = rows.unflatten(0, (HEADS, 3, -1)).clone()
            heads[:, 1:] = _mean(heads[:, 1:], number)
            rows.copy_(heads.flatten(0, 2))
    return model


def part(name: str) -> str:
    """The kind of attention that a tensor belongs to."""
    if "encoder_attn" in name or "EncDecAttention" in name:
        return "cross"
    return "encoder" if re.search(r"(^|model\.)encoder\.(layers|block)\.", name) else "decoder"


def _mean(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """Heads on axis 0, each replaced by the mean of its group."""
    shared = len(heads) // groups
    means = heads.double().unflatten(0, (groups, shared)).mean(1)
    return means.repeat_interleave(shared, 0).to(heads.dtype)
