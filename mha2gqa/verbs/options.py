"""The options that several verbs share: each is said here once, and a verb names it with its default.

A string below says what the help has no room for.
"""

from pathlib import Path
from typing import Annotated, Any

from mha2gqa.errors import OptionError
from mha2gqa.options import Defaults, Option, one_of

LARGEST_SEED = (1 << 32) - 1
"""NumPy's, which trainings seed as well."""
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _repository(value: Any) -> str:
    from mha2gqa.files.upload import repository_name

    return repository_name(value)


def check_private(push_to_hub: str | None, *, private: bool) -> None:
    """Refuse `--private` without the repository that it is said of.

    Raises:
        OptionError: There is none.
    """
    if private and push_to_hub is None:
        raise OptionError("--private goes with --push-to-hub, and says who sees that repository.")


Model = Annotated[
    str | None,
    Option("Directory or Hub id (org/name, org/name@revision). Default: the bundled reference.", is_argument=True),
]
"""Local directory or Hub id (`org/name`, `org/name@revision`); None is the reference checkpoint."""
Converted = Annotated[
    Path | None, Option("Converted checkpoint. Default: the only one in this directory.", is_argument=True)
]
Against = Annotated[str | None, Option("Original checkpoint. Default: the one that it was converted from.")]
Column = Annotated[str | None, Option("Column of tables that holds the text, or the messages; prompt+completion.")]
"""Column of tables that holds the text, a conversation, or `input_ids`; two with a plus between them for what is given
and what is answered. None takes the one that is there of these, else the only one with strings."""
Context = Annotated[int | None, Option("Tokens per block of text. Default: the model's context, up to 2048.")]
"""Tokens of a block of text; None is as many as the model reads, up to 2048."""
BatchSize = Annotated[int | None, Option("Blocks per batch. Default: as many as hold 2048 tokens.", least=1)]
"""Blocks that are run at a time; None is as many as 2048 tokens hold, and at least one."""
Dtype = Annotated[str | None, Option("Dtype to run in.", parse=one_of(_DTYPES), metavar="|".join(_DTYPES))]
"""Dtype to run models in; None is the checkpoint's own on an accelerator, and float32 on a CPU."""
Device = Annotated[str | None, Option("Device to run on. Default: an accelerator, else the CPU.")]
"""Device to run models on; None takes an accelerator when there is one."""
Seed = Annotated[int, Option("Random seed.", least=0, most=LARGEST_SEED)]
ShardSize = Annotated[str | None, Option("Largest weight file, such as 5GB. Default: divided as the source is.")]
"""Largest weight file, for example `5GB`; None keeps the source's division into files."""
Page = Annotated[Path | None, Option("Write an HTML report (report.html) into this directory.", metavar="DIR")]
Force = Annotated[bool, Option("Replace an output that an earlier run made.")]
PushToHub = Annotated[
    str | None,
    Option("Upload the result to this repository of the Hub.", parse=_repository, metavar="ORG/NAME"),
]
"""Repository of the Hub that the finished result is uploaded to, and that is made where there is none."""
Private = Annotated[bool, Option("Of --push-to-hub: a repository that nobody else sees.")]
DryRun = Annotated[bool, Option("Print the plan and write nothing.")]

AsJson = Annotated[bool, Option("Print the report as JSON.", flags=("--json",))]
ConfigFile = Annotated[Path | None, Defaults("YAML file with values for these options.")]
