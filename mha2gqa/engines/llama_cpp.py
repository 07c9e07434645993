"""llama.cpp, by the package xllamacpp, on the one GGUF file beside the checkpoint (`mha2gqa export --gguf`).

The package has llama.cpp's server, in this process and without a port. It answers with the likeliest tokens before
sampling, but only for tokens that end a character: so one is asked for at a time, and is made to be a letter. In fp32
its attention is the plain one: on a CPU, SmolLM2-135M with one KV head by `mean` was 0.08 nats off in the mean with the
fused one and 1.6 at most, 0.0001 and 0.001 with the plain one. The former seems to round to 16 bits.
"""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mha2gqa.engines import Cache, Setup
from mha2gqa.errors import EngineError
from mha2gqa.files.reader import read_json

_TYPES = {"float32": "GGML_TYPE_F32", "float16": "GGML_TYPE_F16", "bfloat16": "GGML_TYPE_BF16"}
_CACHE = re.compile(r"llama_kv_cache(?:_\w+)?: (size = +([\d.]+) MiB \( *(\d+) cells,.*)")
_SURE = 1e4
"""Added to the logit of the token that is to come."""
_CELLS = 1024
"""Tokens at least in a cache whose size is printed in hundredths of a mebibyte."""
GGUF_DTYPES = ("f16", "bf16", "f32")
"""By llama.cpp's names."""
_LAST_WORDS = 0.1
"""Seconds for the thread that prints its log to end."""
_TELLS, _QUIET = 4, 0
"""Verbosity at which llama.cpp tells the size of its cache, and at which it tells nothing."""


class LlamaCpp:
    """A model that llama.cpp runs."""

    def __init__(self, setup: Setup) -> None:
        """Load the one GGUF file beside the directory.

        Raises:
            EngineError: There is none, or more than one; or llama.cpp has no such dtype, or does not load the file.
        """
        import xllamacpp

        if setup.dtype not in _TYPES:
            raise EngineError(f"llama.cpp has no cache in {setup.dtype}", expected=f"--dtype {', '.join(_TYPES)}")
        path = _file(setup.directory)
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # at a failed assertion it waits for a debugger otherwise
        asked: Any = xllamacpp.CommonParams()
        asked.model.path = str(path)
        asked.verbosity = _TELLS if setup.tells else _QUIET
        asked.n_ctx, asked.n_parallel = max(setup.length, _CELLS if setup.tells else 0), 1
        asked.warmup = asked.fit_params = False
        asked.cache_type_k = asked.cache_type_v = getattr(xllamacpp.ggml_type, _TYPES[setup.dtype])
        asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = setup.threads
        asked.swa_full = False
        if setup.dtype == "float32":
            asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        config = read_json(setup.directory / "config.json")
        self._by_layer = "block_configs" in config
        # Where yarn's ramp lies is in the file, too, but read from the command line alone; not said, it is 32 to 1.
        for name in {"beta_fast", "beta_slow"} & (config.get("rope_parameters") or {}).keys():
            setattr(asked, f"yarn_{name}", config["rope_parameters"][name])
        try:
            self._server: Any = xllamacpp.Server(asked)
        except RuntimeError as error:
            raise EngineError(
                f"llama.cpp does not load {path} ({error})",
                expected="a class that it knows",
                remedy="Write the file again (mha2gqa export --gguf f16 --force)",
            ) from error
        from mha2gqa.model.load import load_tokenizer

        self._letter = load_tokenizer(setup.directory).encode("a", add_special_tokens=False)[-1]

    def _complete(self, ids: Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
        """Return the server's answer to a prompt, of which what it has read before is not read again."""
        asked = {"prompt": list(ids), "n_predict": tokens, "temperature": 0.0, "cache_prompt": True}
        answer: dict[str, Any] = self._server.handle_completions(asked | {"ignore_eos": True} | more)
        if "choices" not in answer:
            raise EngineError(f"llama.cpp gives no answer ({answer})")
        return answer

    def follow(self, ids: Sequence[int], top: int) -> list[dict[int, float]]:
        """Return the logarithms of the probabilities of the `top` likeliest tokens after each of `ids`."""
        return [self._after(ids[:length], top) for length in range(1, len(ids) + 1)]

    def write(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Return the tokens that follow greedily, whatever ends a text."""
        written = list(ids)
        for _ in range(tokens):
            likely = self._after(written, 1)
            written.append(max(likely, key=likely.__getitem__))
        return written[len(ids) :]

    def _after(self, ids: Sequence[int], top: int) -> dict[int, float]:
        answer = self._complete(ids, 1, n_probs=top, logit_bias=[[self._letter, _SURE]])
        (chosen, *_) = answer["choices"][0]["logprobs"]["content"]
        return {one["id"]: one["logprob"] for one in chosen["top_logprobs"]}

    def cache(self, printed: str) -> Cache:
        """Return what it prints of its cache; one with windows has two parts.

        Its plain attention keeps the values of every layer as wide as the widest layer's: where heads differ by layer,
        what it prints is not what fused attention takes.
        """
        found = _CACHE.findall(printed)
        told = "; ".join(dict.fromkeys(line for line, _, _ in found))
        sizes = [float(size) * (1 << 20) / int(cells) for _, size, cells in found]
        return Cache(told, sum(sizes) if sizes and not self._by_layer else None)

    def seconds(self, prompts: Sequence[Sequence[int]], new: int) -> float:
        """Return how long `new` tokens of each of the prompts take, one after the other."""
        started = time.perf_counter()
        for ids in prompts:
            self._complete(ids, new)
        return time.perf_counter() - started

    def close(self) -> None:
        """Let go of the model."""
        del self._server
        time.sleep(_LAST_WORDS)


def gguf_path(directory: Path, dtype: str) -> Path:
    """Return where the GGUF file of a checkpoint lies: `<name>-<dtype>.gguf`, beside the directory.

    In there it would be weights that no record speaks of.
    """
    place = directory.resolve()  # `.` has no name of its own
    return place.with_name(f"{place.name}-{dtype}.gguf")


def _file(directory: Path) -> Path:
    found = [path for dtype in GGUF_DTYPES if (path := gguf_path(directory, dtype)).is_file()]
    if len(found) != 1:
        raise EngineError(
            f"There are {len(found)} GGUF files beside {directory}",
            expected="one, which llama.cpp reads",
            remedy=f"Make it: mha2gqa export {directory} --gguf f16",
        )
    return found[0]
