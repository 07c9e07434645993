"""A verification as `verify` would return it, with made-up numbers: what the tests of the page and the card show.

`verification()` is complete; every field of it can be replaced. `HOSTILE` is text that breaks pages that do not
escape, and `hostile()` a verification with it in every string.
"""

import dataclasses
import math
from typing import Any

from mha2gqa.record.conversion import Conversion
from mha2gqa.targets.kv_heads import heads_change
from mha2gqa.verbs.verify.levels import CacheUse, Check, FileLevel, Finding, LoadLevel, OutputsLevel
from mha2gqa.verbs.verify.measures import ComparedText, Continuation, Divergence, LayerError, Loss, PositionLoss
from mha2gqa.verbs.verify.outcome import Benchmark, Limits, Remedy, Similarity, Verification

GROUPS = ((0, 1), (2, 3), (4, 5), (6, 7))
HOSTILE = "</pre><script>document.title='owned'</script><img src=http://127.0.0.1:9/x>&amp;'\"{{ 7 * 7 }}\u202e\x1b[31m"


def verification(**overrides: Any) -> Verification:
    """A conversion of 8 KV heads to 4 that passed none of its limits."""
    kl_counts = [round(4000 * math.exp(-(((index - 29) / 4) ** 2))) for index in range(40)]
    fields = {
        "conversion": Conversion(
            model_type="llama",
            command="convert",
            options={"groups": 4, "method": "mean", "grouping": "contiguous", "seed": 0},
            targets=("kv_heads",),
            change=heads_change(8, 4, "loss"),
            config_changes=[{"path": ("num_key_value_heads",), "before": 8, "after": 4}],
            groups={f"model.layers.{layer}.self_attn": GROUPS for layer in range(4)},
            dropped=(),
        ),
        "original": "example/reference",
        "converted": "/models/reference-gqa4",
        "versions": {"mha2gqa": "0.1.0", "torch": "2.13.0"},
        "limits": Limits(max_ppl_increase=0.01, max_kl=0.02, min_top1=0.95, min_cosine=0.99),
        "verdict": "different",
        "reasons": (
            "The perplexity grows by 370.0 %, and at most 1 % is allowed.",
            "The mean KL divergence is 1.42 nats a token, and at most 0.02 is allowed.",
        ),
        "remedy": Remedy(
            text="convert it with --method aligned, or take more KV heads",
            command="mha2gqa convert --groups 4 --method aligned --output reference-gqa4-aligned",
        ),
        "file": FileLevel(
            readable=True, compared=30, recomputed=8, checksummed=0, files=5, size=14_400_000, seconds=0.4, findings=()
        ),
        "load": LoadLevel(
            checks=(
                Check(name="strict load", passed=True, detail="38 tensors, none missing, none left over"),
                Check(name="cache as predicted", passed=True, detail="4,096 B and 2,048 B a token"),
                Check(name="chunked prefill", passed=True, detail="largest difference 2.1e-06"),
            ),
            original_cache=CacheUse(formula=4096, measured=4096, at={2**n: 4096 << n for n in range(9, 18)}),
            converted_cache=CacheUse(formula=2048, measured=2048, at={2**n: 2048 << n for n in range(9, 18)}),
            dtype="float32",
            device="cpu",
            seconds=3.2,
            findings=(),
        ),
        "outputs": OutputsLevel(
            text=ComparedText(
                description="held-out text of the reference checkpoint (18 files)",
                sampled=False,
                blocks=96,
                context=512,
                tokens=49_056,
            ),
            loss=Loss(original=2.478, converted=4.025, interval=(1.52, 1.575)),
            kl=Divergence(
                mean=1.42,
                p99=5.9,
                largest=13.2,
                edges=tuple(10 ** (-6 + index * 0.2) for index in range(41)),
                counts=tuple(kl_counts),
            ),
            top1=0.521,
            top5=0.604,
            largest_logit_difference=17.25,
            positions=tuple(
                PositionLoss(
                    first=start, last=start + 31, original=2.3 + 20 / (start + 15), converted=3.9 + 9 / (start + 15)
                )
                for start in range(1, 481, 32)
            ),
            layers=tuple(
                LayerError(module=f"model.layers.{layer}.self_attn", error=error)
                for layer, error in enumerate((0.42, 0.66, 0.91, 0.73))
            ),
            agreement={16: 0.5},
            continuations=(
                Continuation(
                    prompt="def parse_known_args(self, args=None, namespace=None):\n",
                    original="        if args is None:\n            args = _sys.argv[1:]\n        return args\n",
                    converted="        if args is not None:\n            raise ValueError('args')\n",
                    agreed=6,
                    tokens=24,
                    written=48,
                ),
            ),
            dtype="float32",
            device="cpu",
            seconds=21.7,
            findings=(
                Finding(level="outputs", guilty="perplexity", problem="grows by 370.0 %, at most 1 % is allowed"),
                Finding(
                    level="outputs", guilty="KL divergence", problem="is 1.42 nats a token, at most 0.02 is allowed"
                ),
            ),
        ),
        "similarity": tuple(
            Similarity(
                module=f"model.layers.{layer}.self_attn",
                values=tuple(
                    tuple(
                        1.0 if a == b else 0.2 * math.cos(a * b + layer) + (0.3 if a // 2 == b // 2 else 0)
                        for b in range(8)
                    )
                    for a in range(8)
                ),
                groups=GROUPS,
            )
            for layer in range(4)
        ),
        "benchmarks": (
            Benchmark(
                task="hellaswag",
                metric="acc_norm",
                higher_is_better=True,
                samples=10_042,
                shots=0,
                dataset="Rowan/hellaswag",
                original=0.2655,
                original_error=0.0044,
                converted=0.2571,
                converted_error=0.0044,
            ),
        ),
    }
    return Verification(**{**fields, **overrides})


def hostile() -> Verification:
    """A verification whose every free text, of names, prompts and findings, is `HOSTILE`."""
    return _poisoned(verification())


def _poisoned(value: Any, field: str = "") -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _poisoned(getattr(value, name), name) for name in names})
    if isinstance(value, dict):
        return {HOSTILE if isinstance(key, str) else key: _poisoned(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_poisoned(inner) for inner in value)
    return HOSTILE if isinstance(value, str) and field not in ("verdict", "level", "command") else value
