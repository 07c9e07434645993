"""Train the reference checkpoint that ships with the package.

A small MHA Llama (8 heads of width 32, 3.6M parameters) on the source text of the standard library
of the Python that runs this script; see `mha2gqa/reference/corpus.py` for what is held out.

    python scripts/train_reference.py --output mha2gqa/reference/checkpoint

About an hour and a half on two CPU cores, minutes on an accelerator. Interrupted runs continue
from the last checkpoint under `--work`. Nothing in the package imports this file.
"""

import json
import math
import platform
from pathlib import Path
from typing import Annotated

import torch
import typer
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import get_last_checkpoint

from mha2gqa.reference.corpus import held_out_files, read_documents, training_files

CONTEXT = 512
END = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that keeps runs of indentation together and splits digits."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?[A-Za-z]+|[0-9]|\n[ ]*| ?[^\sA-Za-z0-9]+|[ ]+(?=\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT)


def pack(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Dataset:
    """Join the documents with the end token and cut the stream into blocks of `CONTEXT` tokens."""
    stream: list[int] = []
    for ids in tokenizer(documents, verbose=False)["input_ids"]:
        stream += [tokenizer.eos_token_id, *ids]
    blocks = torch.tensor(stream[: len(stream) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    return Dataset.from_dict({"input_ids": blocks.tolist(), "labels": blocks.tolist()}).with_format("torch")


def build_model(vocabulary: int) -> LlamaForCausalLM:
    """Return the untrained model: 4 layers, width 256, 8 query heads and 8 KV heads of width 32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=672,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def main(
    output: Annotated[Path, typer.Option(help="Directory of the finished checkpoint.")],
    work: Annotated[Path, typer.Option(help="Directory of the run's own checkpoints.")] = Path("out/reference"),
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = 10_000_000,
    batch: Annotated[int, typer.Option(help="Sequences of 512 tokens in one step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 3e-3,
    vocabulary: Annotated[int, typer.Option(help="Entries of the tokenizer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of the data.")] = 0,
) -> None:
    """Train the tokenizer and the model, and write both with a note of how they were made."""
    torch.manual_seed(seed)
    documents = list(read_documents(training_files()))
    held_out = list(read_documents(held_out_files()))
    tokenizer = train_tokenizer(documents, vocabulary)
    training, evaluation = pack(tokenizer, documents), pack(tokenizer, held_out)
    steps = max(1, tokens // (batch * CONTEXT))
    model = build_model(vocabulary)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(200, steps // 10),
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            bf16=torch.cuda.is_available(),
            logging_steps=50,
            eval_strategy="steps",
            eval_steps=500,
            prediction_loss_only=True,
            save_steps=250,
            save_total_limit=1,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
            data_seed=seed,
        ),
        train_dataset=training,
        eval_dataset=evaluation,
        data_collator=default_data_collator,
    )
    work.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)))
    model.config.use_cache = True  # the Trainer switches it off
    model.bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)
    # The loss is that of the rounded weights that ship, computed in fp32: bf16 is slow on most CPUs.
    model.float()
    loss = trainer.evaluate()["eval_loss"]
    seen = steps * batch * CONTEXT
    note = {
        "tokens": seen,
        "epochs": round(seen / (len(training) * CONTEXT), 2),
        "held_out_loss": round(loss, 4),
        "held_out_perplexity": round(math.exp(loss), 3),
        "held_out_tokens": len(evaluation) * CONTEXT,
        "held_out_bytes": sum(len(text.encode()) for text in held_out),
        "python": platform.python_version(),
        "seed": seed,
    }
    (output / "training.json").write_text(json.dumps(note, indent=2) + "\n")
    typer.echo(json.dumps(note, indent=2))


if __name__ == "__main__":
    typer.run(main)
