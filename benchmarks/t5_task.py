"""The task and the model of `t5.py`: functions of Python's libraries, and the first lines of their docstrings.

    write_task  pairs from the source of the standard library, torch and transformers; a part is kept aside
    pretrain    a T5 of 2 + 4 layers that learns them, with a tokenizer made of the same text
    answer      what a checkpoint makes of the part that was kept aside

The same versions of Python and the libraries give the same pairs. A pair is kept aside by a checksum of its source, so
that no function is in both parts; libraries have functions that resemble one another in both.
"""

import ast
import importlib.util
import json
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

LIBRARIES = ("torch", "transformers")
TRAINING, HELD_OUT = "training.jsonl", "held-out.jsonl"
SOURCE_TOKENS, TARGET_TOKENS = 32, 16
VOCABULARY = 2048
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>"}
BATCH = 32
_PLAIN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
_RATE = 3e-2
"""Relative to the root mean square of a tensor."""
_KEPT_ASIDE = 20
"""One pair in so many."""
_SOURCE, _TARGET = 100, 50
"""Characters of a function, which is cut there, and of a line, which is left out when it is longer."""


def write_task(folder: Path) -> None:
    """Write the pairs as two tables with the columns `source` and `target`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = dict(pair for root in _roots() for path in _files(root) for pair in _functions(path))
    with (folder / TRAINING).open("w") as training, (folder / HELD_OUT).open("w") as held_out:
        for source in sorted(pairs, key=_checksum):
            file = training if _checksum(source) % _KEPT_ASIDE else held_out
            file.write(json.dumps({"source": source, "target": pairs[source]}) + "\n")


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _roots() -> Iterator[Path]:
    yield Path(sysconfig.get_paths()["stdlib"])
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{name} is not installed")
        yield Path(spec.origin).parent


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.relative_to(root).parts:
            yield path


def _functions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name, arguments and the first statements of each function, and the first line of its docstring."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # the standard library keeps files that are meant not to parse
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (ast.get_docstring(node) or "").strip().splitlines()
            if lines and len(lines[0]) <= _TARGET:
                body = [ast.unparse(statement) for statement in node.body[1:4]]
                head = f"def {node.name}({ast.unparse(node.args)})"
                yield "\n".join([head, *body])[:_SOURCE], lines[0].strip()


def _checksum(source: str) -> int:
    return xxhash.xxh3_64_intdigest(source.encode("utf-8", "surrogatepass"))


def pretrain(folder: Path, output: Path, epochs: float) -> dict[str, float]:
    """Train a T5 on the task from scratch.

    Args:
        folder: Where `write_task` has written it.
        output: Directory to create, with model and tokenizer.
        epochs: Passes over the pairs.

    Returns:
        Its `steps`, its `tokens` counted as `mha2gqa uptrain` counts them, its number of `parameters`, `seconds`.
    """
    import datasets
    from transformers import Adafactor, DataCollatorForSeq2Seq, Seq2SeqTrainer, T5ForConditionalGeneration, set_seed

    tokenizer = _tokenizer(folder)
    set_seed(0)
    model: Any = T5ForConditionalGeneration(_config())
    # T5's own optimiser: its steps are relative to each tensor, and the scales of these are far apart.
    optimiser = Adafactor(model.parameters(), lr=_RATE, relative_step=False, warmup_init=False)
    trainer = Seq2SeqTrainer(
        model=model,
        args=_arguments(output.with_name(f"{output.name}-training"), epochs),
        train_dataset=datasets.Dataset.from_list(_tokenised(folder / TRAINING, tokenizer)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        optimizers=(optimiser, None),
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    steps = trainer.state.global_step
    tokens = steps * BATCH * (SOURCE_TOKENS + TARGET_TOKENS)
    return {"steps": steps, "tokens": tokens, "parameters": model.num_parameters(), "seconds": round(seconds)}


def _config() -> Any:
    from transformers import T5Config

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=128,
        d_kv=16,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=4,
        num_heads=8,
    )
    config.decoder_start_token_id = 0
    return config


def _arguments(work: Path, epochs: float) -> Any:
    from transformers import Seq2SeqTrainingArguments

    return Seq2SeqTrainingArguments(
        output_dir=str(work),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        use_cpu=True,
        save_strategy="no",
        logging_steps=50,
        train_sampling_strategy="group_by_length",
        report_to="none",
    )


def _tokenised(path: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    rows = read_pairs(path)
    sources = tokenizer([row["source"] for row in rows], max_length=SOURCE_TOKENS, truncation=True)["input_ids"]
    targets = tokenizer([row["target"] for row in rows], max_length=TARGET_TOKENS, truncation=True)["input_ids"]
    return [{"input_ids": one, "labels": other} for one, other in zip(sources, targets, strict=True)]


def _tokenizer(folder: Path) -> Any:
    """Train a byte-level BPE on the training part."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((text for row in read_pairs(folder / TRAINING) for text in row.values()), trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


def generate(model: Any, tokens: int, **read: Any) -> Any:
    """Return what a model writes, greedily, with a cache.

    The cache is made here: that of transformers 5.23 has as many layers as a T5's encoder, and the decoder has more.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    return model.generate(**read, max_new_tokens=tokens, past_key_values=cache)


def answer(directory: Path, folder: Path, count: int | None = None) -> dict[str, float]:
    """Have a checkpoint answer the held-out sources, greedily.

    Args:
        directory: The checkpoint, original or converted.
        folder: Where `write_task` has written the task.
        count: Of the pairs; None is all.

    Returns:
        The `loss` in nats a token of the target, and in per cent the mean ROUGE-L (F) and the `exact` matches.
    """
    import torch
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    from transformers import DataCollatorForSeq2Seq

    from mha2gqa.model.load import load_model, load_tokenizer

    model: Any = load_model(directory)
    model.generation_config.eos_token_id = 1  # plain generation has none
    tokenizer = load_tokenizer(directory)
    pairs = _tokenised(folder / HELD_OUT, tokenizer)[:count]
    collate = DataCollatorForSeq2Seq(tokenizer, model)
    total = tokens = 0.0
    written: list[str] = []
    with torch.inference_mode():
        for start in range(0, len(pairs), BATCH):
            batch = collate(pairs[start : start + BATCH])
            number = int((batch["labels"] != -100).sum())
            total, tokens = total + number * float(model(**batch).loss), tokens + number
            read = {name: batch[name] for name in ("input_ids", "attention_mask")}
            written += tokenizer.batch_decode(generate(model, TARGET_TOKENS, **read), **_PLAIN)
    wanted = [row["target"] for row in read_pairs(folder / HELD_OUT)[:count]]
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(one, other)["rougeL"].fmeasure for one, other in zip(wanted, written, strict=True)]
    exact = sum(one == other for one, other in zip(wanted, written, strict=True))
    mean = 100 * sum(scores) / len(scores)
    return {"loss": round(total / tokens, 5), "rouge": round(mean, 3), "exact": round(100 * exact / len(pairs), 3)}
