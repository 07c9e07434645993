"""Model classes that ship with a converted checkpoint, where no class of transformers has its KV heads.

NEW SHIPPED CLASS = ONE FILE + ONE LINE. Each module here is one self-contained file, `modeling_<name>.py`: a config
with a `model_type` of its own, its model classes, and `AUTO_MAP` (auto class -> name in the file), as `config.json`
carries it. What is written beside the weights is that file byte for byte, so it may import torch and transformers,
and nothing of mha2gqa.

`register(model_type)` makes transformers know the classes in this process, so that nothing here runs remote code.
Which source becomes which class, and when, is `hosts/table.py`'s.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

MODULES: Mapping[str, str] = {}
"""Model type of the class -> module of this package."""


def register(model_type: str) -> bool:
    """Make transformers know a model type of this package; return whether it is one."""
    if model_type not in MODULES:
        return False
    import transformers

    module = _module(model_type)
    auto_map: Mapping[str, str] = module.AUTO_MAP
    config = getattr(module, auto_map["AutoConfig"])
    transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto, name in auto_map.items():
        if auto != "AutoConfig":
            getattr(transformers, auto).register(config, getattr(module, name), exist_ok=True)
    return True


def find_class(model_type: str, name: str) -> type | None:
    """Return a class of the file of a model type, by its name; None where there is none."""
    return getattr(_module(model_type), name, None) if model_type in MODULES else None


def auto_map(model_type: str) -> dict[str, str]:
    """Return the `auto_map` of `config.json`: auto class -> `<file>.<class>`."""
    return {auto: f"{MODULES[model_type]}.{name}" for auto, name in _module(model_type).AUTO_MAP.items()}


def files(model_type: str) -> dict[str, str]:
    """Return the code that is written beside the weights: file name -> text."""
    path = Path(__file__).with_name(f"{MODULES[model_type]}.py")
    return {path.name: path.read_text(encoding="utf-8")}


def _module(model_type: str) -> ModuleType:
    return import_module(f"{__name__}.{MODULES[model_type]}")
