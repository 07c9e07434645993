"""The command line: every command is made of its verb's options. NEW VERB = ONE FOLDER + ONE WORD.

    verbs/<verb>/options.py     `<Verb>Options`: names, types, defaults, help
    verbs/<verb>/command.py     `command(options, **extras)`: runs it, shows its progress, prints; may return an exit
                                code. The extras are what only the command line has, such as `as_json`
    verbs/<verb>/early.py       `check(options)`, where there is one: refuses what options, paths and small files say
                                alone, before `command` is imported

What is heavy is imported when a command is used, with garbage collection paused, which costs a fifth of the start-up of
torch and transformers.

Exit codes: 0 done, 1 refused (one message on stderr), 2 wrong usage, 3 verify found the checkpoint different
(or uptrain, told to keep the last weights, ends worse than it began), 130 interrupted.
"""

import contextlib
import gc
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from mha2gqa.errors import KEPT, Interrupted, Mha2GqaError, OptionError, is_text, visible
from mha2gqa.options import Defaults, Options, Parameter, Parser, parameters, read, written
from mha2gqa.terminal import open_streams, told_output

VERBS = ("inspect", "convert", "verify", "uptrain", "sweep", "bench", "expand", "export", "demo")
"""In the order in which a newcomer meets them; `--help` lists them so."""
_FROM_FILE = "mha2gqa.file"
"""Key of a command's context: what a YAML file has for options that are mappings."""


def build(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """Return the app with a command for each verb."""
    made = typer.Typer(
        help="Convert a trained transformer to attention that keeps less KV cache, and verify the result.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    @made.callback()
    def mha2gqa(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
        ] = False,
    ) -> None: ...

    for verb in verbs:
        options = getattr(import_module(f"mha2gqa.verbs.{verb}.options"), f"{verb.capitalize()}Options")
        help_text = inspect.cleandoc(options.__doc__).partition("\n\n")[0]
        made.command(verb, help=help_text)(_command(verb, options))
    return made


def _command(verb: str, options: type[Options]) -> Callable[..., None]:
    """Return a function that runs a verb; its signature, which is all that typer reads of it, is the verb's options."""
    known = parameters(options)
    extras = [name for name, one in known.items() if not one.is_field and not isinstance(one.option, Defaults)]

    def command(given: typer.Context, **values: Any) -> None:
        asked = _options(options, values, given.meta.get(_FROM_FILE, {}))
        _refuse_early(verb, asked)
        with _quick_imports():
            run = import_module(f"mha2gqa.verbs.{verb}.command").command
        if code := run(asked, **{name: values[name] for name in extras}):
            raise typer.Exit(code)

    context = inspect.Parameter("given", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    signature = inspect.Signature([context, *(_parameter(one, known) for one in known.values())])
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def _refuse_early(verb: str, asked: Options) -> None:
    """Refuse what the verb can judge before it imports what is heavy, which takes seconds."""
    name = f"mha2gqa.verbs.{verb}.early"
    try:
        early = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return  # nothing heavy is imported for the verb, or nothing can be judged
    early.check(asked)


def _options(options: type[Options], values: Mapping[str, Any], from_file: Mapping[str, Any]) -> Options:
    """Return what was asked for; what was not given has its default there."""
    known = parameters(options)
    given = {name: values[name] for name, one in known.items() if one.is_field and values[name] is not None}
    try:
        for name, entries in from_file.items():
            given[name] = {**entries, **read(known[name], given.get(name, {}))}
        return options(**given)
    except OptionError as error:
        raise typer.BadParameter(visible(error.problem)) from error


def _parameter(one: Parameter, known: Mapping[str, Parameter]) -> inspect.Parameter:
    """Return an option as typer takes it."""
    option, hint, default = one.option, one.hint, written(one.default)
    details: dict[str, Any] = {"help": option.help, "metavar": one.metavar, "min": option.least, "max": option.most}
    read_text = one.read_one if one.choices else option.parse
    if isinstance(option, Defaults):
        details |= {"callback": _file_reader(known), "is_eager": True}
    if option.is_repeatable:
        hint, default = list[str] | None, None
        read_text = None if option.parse else read_text  # it wants all texts, which the options' class has
    elif read_text:
        hint = str | None
    if read_text:  # typer names the type of a parser by its function; without a metavar it shall say `str`
        details["parser" if one.metavar else "callback"] = _checked(read_text)
    flags = option.flags or ((f"--{one.name.replace('_', '-')}",) if default is False else ())
    info = typer.Argument(**details) if option.is_argument else typer.Option(*flags, **details)
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[hint, info],
        default=inspect.Parameter.empty if default is MISSING else default,
    )


def _checked(read_text: Parser) -> Parser:
    """Return a parser that refuses as typer wants it, which puts the name of the option before the message."""

    def parse(value: Any) -> Any:
        try:
            return None if value is None else read_text(value)
        except ValueError as error:
            raise typer.BadParameter(visible(str(error))) from None
        except OptionError:
            return value  # its message names the option already, and comes when the options are made

    return parse


def _file_reader(known: Mapping[str, Parameter]) -> Callable[[typer.Context, Path | None], Path | None]:
    """Return what takes the defaults of options from a YAML file; entries of mappings are kept for the command."""

    def take(context: typer.Context, path: Path | None) -> Path | None:
        content = {} if path is None else _file_content(path, known)
        mappings = [one for name, one in known.items() if one.is_mapping and name in content]
        context.meta[_FROM_FILE] = {one.name: _entries(path, one, content.pop(one.name)) for one in mappings}
        context.default_map = {**(context.default_map or {}), **content}
        return path

    return take


def _entries(path: Path | None, one: Parameter, value: Any) -> Any:
    try:
        return one.read(value or {})
    except ValueError as error:
        raise typer.BadParameter(visible(f"{path}: `{one.name}` {error}")) from None
    except OptionError as error:
        raise typer.BadParameter(visible(f"{path}: {error.problem}")) from None


def _file_content(path: Path, known: Collection[str]) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(visible(f"{path} cannot be read: {error}")) from error
    if not isinstance(content, dict) or not content.keys() <= set(known):
        raise typer.BadParameter(f"{path} must map these names to values: {', '.join(sorted(known))}")
    return content


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Import without collecting garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _version(wanted: bool) -> None:
    if wanted:
        from mha2gqa.console import print_report

        print_report([f"mha2gqa {version('mha2gqa')}"])
        raise typer.Exit


app = build()


def main() -> None:
    """Run the command line; a refusal is one message and exit code 1, a bug keeps its traceback."""
    open_streams()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # and with them those of transformers
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries; read when tqdm is imported
    try:
        with told_output():
            _check_words(sys.argv[1:])
            app()
    except Mha2GqaError as error:
        from mha2gqa.console import print_error

        if os.environ.get("LOCAL_RANK", "0") == "0":  # a launcher's other processes refuse for the same reason
            print_error(str(error))
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == 130:  # typer turns Ctrl-C into this
            from mha2gqa.console import print_error

            kept = _kept(ending)
            print_error(f"Interrupted. {KEPT.format(kept)}." if kept else "Interrupted; nothing was left behind.")
        raise


def _check_words(arguments: Iterable[str]) -> None:
    """Refuse arguments that are bytes and no text, such as a name in Latin-1, which reports and records cannot hold."""
    for argument in arguments:
        if not is_text(argument):
            raise OptionError(
                f"The argument {argument!r} is not UTF-8", expected="text", remedy="Rename the file or directory"
            )


def _kept(error: BaseException | None) -> str:
    """Return where the layers of an interrupted run stay, by what typer has made of the interruption."""
    while error is not None:
        if isinstance(error, Interrupted):
            return error.kept
        error = error.__cause__ or error.__context__
    return ""
