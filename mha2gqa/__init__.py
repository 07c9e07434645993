"""mha2gqa: convert a multi-head attention checkpoint to grouped-query or multi-query attention.

`docs/develop/map.md` is the map of the folders; imports run one way, from the verbs down to the numbers of one head.

    from mha2gqa import ConvertOptions, convert
    report = convert(ConvertOptions(model="path/or/hub-id", groups=4))

Nothing heavy is imported until a command is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mha2gqa.errors import Mha2GqaError
from mha2gqa.progress import Progress

if TYPE_CHECKING:
    from mha2gqa.verbs.bench.options import BenchOptions
    from mha2gqa.verbs.bench.run import bench
    from mha2gqa.verbs.convert.options import ConvertOptions
    from mha2gqa.verbs.convert.run import convert
    from mha2gqa.verbs.expand.options import ExpandOptions
    from mha2gqa.verbs.expand.run import expand
    from mha2gqa.verbs.export.options import ExportOptions
    from mha2gqa.verbs.export.run import export
    from mha2gqa.verbs.inspect.options import InspectOptions
    from mha2gqa.verbs.inspect.run import inspect
    from mha2gqa.verbs.sweep.options import SweepOptions
    from mha2gqa.verbs.sweep.run import sweep
    from mha2gqa.verbs.uptrain.options import UptrainOptions
    from mha2gqa.verbs.uptrain.run import uptrain
    from mha2gqa.verbs.verify.options import VerifyOptions
    from mha2gqa.verbs.verify.run import verify

__version__ = "0.1.0"

_COMMANDS = ("bench", "convert", "expand", "export", "inspect", "sweep", "uptrain", "verify")

__all__ = [
    "BenchOptions",
    "ConvertOptions",
    "ExpandOptions",
    "ExportOptions",
    "InspectOptions",
    "Mha2GqaError",
    "Progress",
    "SweepOptions",
    "UptrainOptions",
    "VerifyOptions",
    "bench",
    "convert",
    "expand",
    "export",
    "inspect",
    "sweep",
    "uptrain",
    "verify",
]


def __getattr__(name: str) -> Any:
    verb = name.removesuffix("Options").lower()
    if name in __all__ and verb in _COMMANDS:
        return getattr(import_module(f"mha2gqa.verbs.{verb}.{'run' if name == verb else 'options'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
