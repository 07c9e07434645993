"""The engine level of `verify`: an engine that others wrote makes of the checkpoint what transformers makes of it.

Both read the same random tokens, and after each the engine's likeliest ones are held against transformers' numbers for
them. Then both write greedily; where they part, it tells how much likelier than the engine's token the best one was.
The original takes no part: what the conversion costs is measured by the other levels.

Legend: T tokens, V vocabulary.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from transformers import PreTrainedModel

from mha2gqa.engines import Setup, distribution, open_engine
from mha2gqa.engines.printed import heard
from mha2gqa.errors import EngineError
from mha2gqa.families.cache import cache_bytes
from mha2gqa.model.feed import inputs
from mha2gqa.model.load import context_length
from mha2gqa.targets.window import windows
from mha2gqa.verbs.verify.levels import EngineLevel, Finding
from mha2gqa.verbs.verify.load_level import Models, random_tokens

_READ, _WRITTEN, _LIKELIEST = 48, 24, 20
_BEYOND, _FARTHEST = 16, 2048
"""Tokens that are read beyond the shortest window, which an engine may ignore; and the most that are read for it."""
_LIMITS = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.1}
"""Dtype -> mean difference of the logarithm of a probability that rounding and other kernels explain. In fp32 the
engines of `docs/results/engines.md` stay below 0.002 where they are right, and are past 1 where they are wrong."""
_WRONG = 10
"""Times the limit: more than that less likely than the best is no tie between two tokens."""
_ROUNDED = 0.05
"""Of a size that an engine prints in whole hundredths of a mebibyte or gibibyte."""


def check_engine_level(models: Models, model: PreTrainedModel, engine: str, seed: int) -> EngineLevel:
    """Have an engine run the converted checkpoint.

    Args:
        models: Both models of the pair.
        model: The converted one, as transformers loads it.
        engine: Name in `ENGINES`.
        seed: Of the tokens.

    Raises:
        EngineError: It is not installed, or does not take the checkpoint.
    """
    started = time.monotonic()
    bounded = [window for window in windows(models.pair.result) if window]
    length, written_count = lengths(context_length(model.config, None), bounded)
    ids_T = random_tokens(model, models.pair.result.config_json, seed, length - written_count - 1)[0]
    read = len(ids_T)
    setup = Setup(
        directory=models.pair.converted,
        dtype=models.dtype,
        length=length,
        threads=torch.get_num_threads(),
        seed=seed,
        tells=True,
    )
    with _heard() as printed, contextlib.closing(open_engine(engine, setup)) as opened:
        likely = opened.follow(ids_T.tolist(), _LIKELIEST)
        written = opened.write(ids_T.tolist(), written_count)
        cache = opened.cache(printed())
    logs_TV = _logarithms(model, torch.cat([ids_T, torch.tensor(written)]))
    away = [
        abs(float(row[token]) - log) for row, one in zip(logs_TV, likely, strict=False) for token, log in one.items()
    ]
    best_T, taken = logs_TV[read - 1 : -1].amax(dim=-1), torch.tensor(written)[:, None]
    behind_T = best_T - logs_TV[read - 1 : -1].gather(-1, taken)[:, 0]
    level = EngineLevel(
        name=engine,
        version=version(distribution(engine)),
        read=read,
        mean_difference=sum(away) / len(away),
        largest_difference=max(away),
        agreed=_agreed(model, ids_T, written),
        written=len(written),
        behind=float(behind_T.max()),
        cache=cache.told,
        cache_measured=cache.per_token,
        cache_formula=cache_bytes(models.pair.result.cached, model.dtype.itemsize),
        dtype=models.dtype,
        device=model.device.type,
        seconds=time.monotonic() - started,
        findings=(),
        unread_window=max((window for window in bounded if window >= length), default=None),
    )
    return replace(level, findings=tuple(_findings(level)))


@contextlib.contextmanager
def _heard() -> Iterator[Callable[[], str]]:
    """Hear what an engine prints: what it says of an error is the better half of a refusal."""
    with heard() as printed:
        try:
            yield printed
        except EngineError as error:
            said = next((line for line in printed().splitlines() if " error " in line or "Error:" in line), "")
            more = f": {said[-300:]}" if said else ""
            raise EngineError(error.problem + more, expected=error.expected, remedy=error.remedy) from error


def lengths(context: int, bounded: Sequence[int]) -> tuple[int, int]:
    """Return how many tokens there may be, and how many of them are to be written.

    Args:
        context: Tokens that the model reads.
        bounded: The windows of layers that have one.
    """
    beyond = min(bounded, default=_FARTHEST) + _BEYOND
    read = max(_READ, beyond if beyond <= _FARTHEST else 0)
    length = min(context, read + _WRITTEN + 1)
    return length, min(_WRITTEN, length // 3)


@torch.inference_mode()
def _logarithms(model: PreTrainedModel, ids_T: torch.Tensor) -> torch.Tensor:
    """Return the logarithms of the probabilities of all tokens after each: `[T, V]`, fp32 on the CPU."""
    logits_TV: torch.Tensor = model(**inputs(model, ids_T[None])).logits[0]
    return logits_TV.float().log_softmax(dim=-1).cpu()


@torch.inference_mode()
def _agreed(model: PreTrainedModel, ids_T: torch.Tensor, written: list[int]) -> int:
    """Return how many of the tokens that the engine wrote are those that the model writes."""
    ids_T = ids_T.clone()
    for number, token in enumerate(written):
        best = int(_logarithms(model, ids_T)[-1].argmax())
        if best != token:
            return number
        ids_T = torch.cat([ids_T, torch.tensor([best])])
    return len(written)


def _findings(level: EngineLevel) -> Iterator[Finding]:
    limit = _LIMITS.get(level.dtype, min(_LIMITS.values()))
    measured, formula = level.cache_measured, level.cache_formula
    if not level.mean_difference <= limit:
        problem = f"finds other probabilities: {level.mean_difference:.3g} nats off in the mean; the limit is {limit:g}"
        yield Finding(level="engine", guilty=level.name, problem=problem)
    elif not level.behind <= _WRONG * limit:
        problem = f"writes a token that is {level.behind:.3g} nats less likely than the best one"
        yield Finding(level="engine", guilty=level.name, problem=problem)
    if measured is not None and abs(measured - formula) > _ROUNDED * formula:
        problem = f"keeps {measured:,.0f} bytes a token; the formula says {formula:,}"
        yield Finding(level="engine", guilty=level.name, problem=problem)
