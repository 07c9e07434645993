"""What can be asked of `export`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mha2gqa.errors import OptionError
from mha2gqa.options import Option, Options
from mha2gqa.verbs.options import AsJson, Converted, Private, PushToHub, check_private

Gguf = Literal["f16", "bf16", "f32"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Options):
    """Write a GGUF file, or upload a checkpoint to the Hub."""

    converted: Converted = None
    gguf: Annotated[Gguf | None, Option("Write one file for llama.cpp beside the checkpoint, in this dtype.")] = None
    push_to_hub: PushToHub = None
    private: Private = False
    force: Annotated[bool, Option("Replace a GGUF file of that name.")] = False
    as_json: ClassVar[AsJson] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_private(self.push_to_hub, private=self.private)
        if self.push_to_hub is None and self.gguf is None:
            raise OptionError("Nothing says what to make of the checkpoint: give --gguf or --push-to-hub.")
