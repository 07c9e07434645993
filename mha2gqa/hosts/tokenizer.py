"""Keeps a tokenizer readable in a directory whose model type is another.

Loaders choose the tokenizer's class by `tokenizer_config.json`, then `config.json`, then the model type; and some
model types read `tokenizer.json` alone, which older checkpoints do not have.
"""

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from mha2gqa.files.reader import Checkpoint

_FILE = "tokenizer.json"
_VOCABULARIES = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def tokenizer_class(checkpoint: Checkpoint) -> str | None:
    """Return the tokenizer's class that the source's config or model type stands for; None without a tokenizer."""
    names = {companion.name for companion in checkpoint.companions}
    if not names & {_FILE, *_VOCABULARIES}:
        return None
    model_type = str(checkpoint.config["model_type"])
    name: str | None = checkpoint.config.get("tokenizer_class") or TOKENIZER_MAPPING_NAMES.get(model_type)
    return name


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return `tokenizer.json` where the source has only the files that its own tokenizer class reads.

    Tokenizers without such a form (BioGPT's, for one) stay as they are, and are loaded by their own class.
    """
    names = {companion.name for companion in checkpoint.companions}
    if _FILE in names or not names.intersection(_VOCABULARIES):
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory, trust_remote_code=False)
    except Exception:  # of every kind: one that cannot be loaded here is copied as it is
        return {}
    return {_FILE: tokenizer.backend_tokenizer.to_str()} if isinstance(tokenizer, PreTrainedTokenizerFast) else {}
