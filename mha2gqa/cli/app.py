"""The typer app that every command registers with, and the way all of them import what is heavy."""

import contextlib
import gc
from collections.abc import Iterator

import typer

app = typer.Typer(
    help="Convert a multi-head attention checkpoint to grouped-query (GQA) or multi-query attention (MQA).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without collecting garbage, which costs a fifth of the start-up of torch and transformers."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
