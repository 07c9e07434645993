"""Which files belong to a checkpoint beside its config and weights, by their names.

Tokenizers, processors, templates, generation settings, licences and other texts, images, code. Everything else is of no
use to a result, or wrong in it: other weights, states of a training, settings with the old heads, logs. What only a
reference tells (`auto_map`, `modules.json`) is found by `companions.py`. No file is looked at here.
"""

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import PurePath

from mha2gqa.errors import visible

_TOKENIZERS = (
    *("tokenizer.json", "*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("*vocab*.json", "*vocab*.txt", "*.vocab", "vocab.bpe", "*merges*.txt", "*dict*.txt", "encoder.json", "*.codes"),
    *("*.model", "*.model.v[0-9]*", "*.spm", "*.tiktoken", "*.tokenizer"),
    *("alphabet.json", "normalizer.json", "emoji.json", "word_shape.json", "word_pronunciation.json"),
)
_PROCESSORS = ("*processor*.json", "*feature_extract*.json", "*generation_config*.json", "configuration.json")
_TEMPLATES = ("*.jinja", "*.jinja2", "*chat_template*.json")
_CODE = (
    *("modeling*.py", "modelling*.py", "configuration*.py", "tokenization*.py", "generation*.py", "modular*.py"),
    *("processing*.py", "image_processing*.py", "video_processing*.py", "audio_processing*.py"),
    "feature_extraction*.py",
)
_TEXTS = (
    *("*.md", "*license*", "*licence*", "*notice*", "*copying*", "*copyright*", "authors*", "citation*", "patents*"),
    *("*use_policy*", "*use policy*", "*terms*.txt", "requirements*.txt"),
)
_LABELS = ("*label*.json", "*label*.txt", "*classes*.txt", "*classes*.json")
_OTHERS = ("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "*quant*config*.json")
_BY_NAME = (*_TOKENIZERS, *_PROCESSORS, *_TEMPLATES, *_CODE, *_TEXTS, *_LABELS, *_OTHERS)
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")

_FOLDERS = ("*chat_templates*", "*tokenizer*", "*processor*", "custom_generate", "license*", "licence*")
_PICTURES = ("assets", "images", "image", "imgs", "img", "figures", "figs", "media", "pics", "docs", "doc", "static")
_NEVER = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".npy")
_NEVER_BY_NAME = (*_NEVER, ".index.json", ".bak", ".tmp", ".orig", ".old", ".swp", "~", ".log", ".lock")
OWN = ("config.json", "README.md", "mha2gqa.json")
"""Written anew at the top of a result."""


def may_hold(folder: str) -> bool:
    """Return whether a folder at the top may hold what belongs."""
    return _matches(folder, (*_FOLDERS, *_PICTURES))


def belongs(path: PurePath) -> bool:
    """Return whether a file, by its place in the directory of a checkpoint, belongs to it."""
    *folders, name = path.parts
    if any(part.startswith(".") for part in path.parts) or visible(str(path)) != str(path):
        return False
    lower = name.lower()
    if lower.endswith(_NEVER_BY_NAME) or (not folders and name in OWN) or len(folders) > 2:
        return False
    if folders and _matches(folders[0], _PICTURES):
        return lower.endswith((*_IMAGES, ".md"))
    if folders and not _matches(folders[0], _FOLDERS):
        return False
    is_code = bool(folders) and folders[0] == "custom_generate" and lower.endswith(".py")
    return is_code or (not folders and lower.endswith(_IMAGES)) or _matches(name, _BY_NAME)


def is_read(path: PurePath) -> bool:
    """Return whether a loader may read a file that lies in a checkpoint: code, templates, tokenizers, weights, shards.

    Texts, licences and pictures are not, nor notes and logs.
    """
    lower = path.name.lower()
    if any(part.startswith(".") for part in path.parts):
        return False
    if lower.endswith((*_NEVER, ".index.json", ".py", ".so", ".nemo", ".engine", ".pkl", ".distcp")):
        return True
    return belongs(path) and not lower.endswith((*_IMAGES, ".md")) and not _matches(path.name, _TEXTS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)
