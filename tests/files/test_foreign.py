"""Directories without ordinary weights: what is there is named, with the tool that makes a checkpoint of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mha2gqa.errors import CheckpointError
from mha2gqa.files.reader import read_checkpoint

ROWS = [
    (["model-q8_0.gguf"], "model-q8_0.gguf: weights of llama.cpp", "gguf_file="),
    (["pytorch_model_fsdp_0/__0_0.distcp"], "pytorch_model_fsdp_0/__0_0.distcp: a sharded", "accelerate merge-weights"),
    (["__0_0.distcp", ".metadata"], "__0_0.distcp: a sharded checkpoint of FSDP", "accelerate merge-weights"),
    (["global_step500/zero_pp_rank_0_mp_rank_00_optim_states.pt"], "global_step500: ", "zero_to_fp32.py"),
    (["zero_to_fp32.py", "latest"], "zero_to_fp32.py: a training checkpoint of DeepSpeed", "--safe_serialization"),
    (["mp_rank_00/model_optim_rng.pt"], "mp_rank_00: a training checkpoint of Megatron", "Megatron-Bridge"),
    (["release/mp_rank_00/model_optim_rng.pt"], "release/mp_rank_00: a training checkpoint of Megatron", "Megatron"),
    (["consolidated.00.pth", "consolidated.01.pth"], "consolidated.00.pth: ", "convert_llama_weights_to_hf.py"),
    (["consolidated-00001-of-00002.safetensors"], "in the form of their authors", "convert_mistral_weights_to_hf.py"),
    (["original/consolidated.00.pth"], "original/consolidated.00.pth: weights in the form", "version for transformers"),
    (["lit_model.pth", "model_config.yaml"], "lit_model.pth: weights of LitGPT", "litgpt convert_from_litgpt"),
    (["llama.nemo"], "llama.nemo: a checkpoint of NeMo", "Export"),
    (["pytorch_model-00001-of-00003.bin"], "-of-00003.bin: shards, and the index", "ends in .index.json"),
    (["model.bf16.safetensors"], "model.bf16.safetensors: a variant", "Rename it to model.safetensors"),
    (["pytorch_model.fp16.bin"], "pytorch_model.fp16.bin: a variant", "Rename it"),
    (["adapter_model.safetensors"], "adapter_model.safetensors: an adapter without", "merge_and_unload"),
    (["rank0.engine", "onnx/model.onnx"], "rank0.engine: an export", "that it was made from"),
    (["tf_model.h5"], "tf_model.h5: weights for another framework", "from_tf"),
    (["checkpoint-500/model.safetensors", "runs/x"], "checkpoint-500/model.safetensors: the output of a", "Name the"),
    (["unet/model.safetensors"], "unet/model.safetensors: folders with weights", "Name the folder"),
    (["my-llama.safetensors"], "my-llama.safetensors: weights under a name", "Rename the file"),
    (["model.pt", "notes.txt"], "model.pt: weights under a name", "plain state dict"),
]


@pytest.mark.parametrize(("files", "says", "remedy"), ROWS, ids=lambda one: one[0] if isinstance(one, list) else "")
def test_what_is_there_instead(tiny: Callable[..., Path], files: list[str], says: str, remedy: str) -> None:
    source = tiny()
    (source / "model.safetensors").unlink()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"0")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(source)
    assert f"There are no weights in {source} that transformers reads, but " in str(caught.value)
    assert says in str(caught.value)
    assert remedy in str(caught.value)
    assert "Expected model.safetensors, model.safetensors.index.json, pytorch_model.bin or" in str(caught.value)


def test_nothing_of_the_kind(tiny: Callable[..., Path]) -> None:
    source = tiny()
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"^There are no weights in {source}\. Expected model\.safetensors"):
        read_checkpoint(source)


def test_a_crowd_of_other_files(tiny: Callable[..., Path]) -> None:
    source = tiny()
    (source / "model.safetensors").unlink()
    for number in range(3000):
        (source / f"{number}.log").touch()
    with pytest.raises(CheckpointError, match="There are no weights"):
        read_checkpoint(source)


@pytest.mark.parametrize("metadata", [None, "missing", 3, [], {"total_size": "many"}])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_index_with_odd_metadata_is_read(
    tiny: Callable[..., Path], pickled: Callable[..., Path], cli: Callable, form: str, metadata: object
) -> None:
    import json

    source = tiny(max_shard_size="150KB")
    if form == "bin":
        pickled(source, shards=3)
    path = next(source.glob("*.index.json"))
    content = {"weight_map": json.loads(path.read_text())["weight_map"]}
    path.write_text(json.dumps(content if metadata == "missing" else content | {"metadata": metadata}))
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
