"""Model classes that ship with a converted checkpoint, where no class of transformers has its KV heads.

NEW SHIPPED CLASS = ONE FILE + ONE LINE. Each module here is one self-contained file, `modeling_<name>_gqa.py`: for
each of its families a config `<Family>GQAConfig` with a `model_type` of its own, `<type>_gqa`, and all model classes of
that family as `<Family>GQA<Head>`. What is written beside the weights is that file byte for byte, so it may import
torch and transformers, and nothing of mha2gqa.

`register(model_type)` makes transformers know the classes in this process, so that nothing here runs remote code.
Which source becomes which class, and when, is `hosts/choice.py`'s.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

_FILES = {
    "modeling_bart_gqa": (
        "bart blenderbot blenderbot-small m2m_100 marian mbart pegasus plbart speech_to_text whisper"
    ),
    "modeling_bert_gqa": (
        "bert bert-generation camembert data2vec-text electra ernie roberta roberta-prelayernorm xlm-roberta "
        "xlm-roberta-xl"
    ),
    "modeling_bloom_gqa": "bloom",
    "modeling_encoder_gqa": "distilbert deberta deberta-v2 deit dinov2 hubert vit wav2vec2",
    "modeling_gpt2_gqa": "gpt2",
    "modeling_mpt_gqa": "mpt",
    "modeling_opt_gqa": "opt",
    "modeling_t5_gqa": "t5 mt5 umt5",
}
_LAYERED = {"nemotron-nas": "llama"}
"""Model type of a class whose heads differ by layer -> that of the native class that it is made of."""
GROUPED = {f"{name}_gqa": file for file, names in _FILES.items() for name in names.split()}
"""Model type of a class with a number of KV heads -> module of this package."""
MODULES: Mapping[str, str] = GROUPED | {name: f"modeling_{name.replace('-', '_')}" for name in _LAYERED}
"""Model type of the class -> module of this package."""
SOURCES = tuple(name.removesuffix("_gqa") for name in GROUPED)
"""Model types that have a class here."""


def register(model_type: str) -> bool:
    """Make transformers know a model type of this package; return whether it is one."""
    if model_type not in MODULES:
        return False
    import transformers

    names = _auto_classes(model_type)
    config = getattr(_module(model_type), names["AutoConfig"])
    transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto, name in names.items():
        if auto != "AutoConfig":
            getattr(transformers, auto).register(config, getattr(_module(model_type), name), exist_ok=True)
    return True


def find_class(model_type: str, name: str) -> type | None:
    """Return a class of the file of a model type, by its name; None where there is none."""
    return getattr(_module(model_type), name, None) if model_type in MODULES else None


def native(model_type: str) -> str:
    """Return the model type of transformers that one of this package is made of; others are their own."""
    return _LAYERED.get(model_type, model_type.removesuffix("_gqa"))


def architectures(model_type: str) -> dict[str, str]:
    """Return the model classes of a model type: transformers' class -> the class of the file."""
    return {found.__mro__[2].__name__: found.__name__ for found in _model_classes(model_type)}


def auto_map(model_type: str) -> dict[str, str]:
    """Return the `auto_map` of `config.json`: auto class -> `<file>.<class>`."""
    return {auto: f"{MODULES[model_type]}.{name}" for auto, name in _auto_classes(model_type).items()}


def files(model_type: str) -> dict[str, str]:
    """Return the code that is written beside the weights: file name -> text."""
    path = Path(__file__).with_name(f"{MODULES[model_type]}.py")
    return {path.name: path.read_text(encoding="utf-8")}


@cache
def _auto_classes(model_type: str) -> dict[str, str]:
    """Return the auto classes that know the native model type, and our class for each."""
    from transformers.models.auto import modeling_auto

    ours = architectures(model_type)
    found = {"AutoConfig": _config_class(model_type).__name__}
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None:
            names = mapping._model_mapping.get(native(model_type), ())
            known = [ours[one] for one in ((names,) if isinstance(names, str) else names) if one in ours]
            found |= {name: known[0]} if known else {}
    return found


def _model_classes(model_type: str) -> Iterator[type]:
    config = _config_class(model_type)
    for found in vars(_module(model_type)).values():
        if isinstance(found, type) and getattr(found, "config_class", None) is config and len(found.__mro__) > 4:
            yield found


def _config_class(model_type: str) -> type:
    members = vars(_module(model_type)).values()
    return next(one for one in members if isinstance(one, type) and getattr(one, "model_type", None) == model_type)


def _module(model_type: str) -> ModuleType:
    return import_module(f"{__name__}.{MODULES[model_type]}")
