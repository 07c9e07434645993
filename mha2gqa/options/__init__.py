"""What the user can ask of each command: frozen, keyword-only, one sentence a field; a module a command.

No torch here: the command line builds these before anything heavy is imported.
"""

from mha2gqa.options.bench import Attention, BenchOptions, CacheKind, Engine
from mha2gqa.options.convert import ConvertOptions, ExpandOptions, Grouping, Refinement
from mha2gqa.options.inspect import InspectOptions
from mha2gqa.options.sweep import SweepOptions
from mha2gqa.options.uptrain import Objective, Trained, UptrainOptions
from mha2gqa.options.verify import Level, VerifyOptions

__all__ = [
    "Attention",
    "BenchOptions",
    "CacheKind",
    "ConvertOptions",
    "Engine",
    "ExpandOptions",
    "Grouping",
    "InspectOptions",
    "Level",
    "Objective",
    "Refinement",
    "SweepOptions",
    "Trained",
    "UptrainOptions",
    "VerifyOptions",
]
