"""`mha2gqa convert`: a checkpoint that keeps less KV cache."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mha2gqa.errors import CalibrationError
from mha2gqa.files.staging import check_output
from mha2gqa.methods import AUTO, demand, text_readers
from mha2gqa.model.original import Original
from mha2gqa.progress import QUIET, Progress
from mha2gqa.record.carry import Request, carry_out
from mha2gqa.record.conversion import Outcome
from mha2gqa.targets.by_layer import HeadsByLayer
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.latent.target import Latent
from mha2gqa.targets.plan import make_plan
from mha2gqa.targets.target import Chain, Target
from mha2gqa.targets.window import Window, parse_layers
from mha2gqa.units import parse_size
from mha2gqa.verbs.convert.options import ConvertOptions


def convert(options: ConvertOptions, progress: Progress = QUIET) -> Outcome:
    """Convert a checkpoint to fewer KV heads, a window, or both; or to a latent.

    Args:
        options: What to convert, and how.
        progress: Told of every run of bytes that is written, of everything that runs the model, and of each attention
            layer that a layer method has finished.

    Returns:
        What was done, or with `dry_run` what would be.

    Raises:
        Mha2GqaError: The request is refused; nothing has been written.
    """
    if options.push_to_hub is not None:
        from mha2gqa.files.upload import check_account

        check_account(options.push_to_hub)
    _check(options)
    original = Original.find(options.model)
    if options.output is not None and not options.dry_run:
        check_output(options.output, original.source.directory, 0, force=options.force)
    chosen: dict[str, object] = {}
    if AUTO in (options.groups, options.window_layers):
        from mha2gqa.verbs.convert.choosing import choose

        choice = choose(options, original, progress)
        options, chosen = choice.options, choice.told()
    target = _target(options)
    plan = make_plan(target.host(original), target)
    output = options.output or Path(f"{original.source.name}-{target.suffix()}")
    if not options.dry_run:
        check_output(output, original.source.directory, plan.size, force=options.force)
    with contextlib.ExitStack() as stack:
        made = None
        # What runs a model and reads text is half of the package: it is imported where layers ask for it.
        if isinstance(target, Latent):
            from mha2gqa.verbs.convert.latents import converted_latents

            made = stack.enter_context(converted_latents(options, plan, target, output, progress))
            target = made.target or target
            plan = make_plan(plan.original, target)
        elif _whole_layers(options):
            from mha2gqa.verbs.convert.conversion import converted_layers

            made = stack.enter_context(converted_layers(options, plan, output, progress, has_text=bool(chosen)))
            options = made.options or options
        request = Request(
            command="convert",
            target=target,
            options={**({} if options.groups is not None else target.options()), **options.recorded()},
            output=output,
            max_shard_size=options.max_shard_size,
            force=options.force,
            dry_run=options.dry_run,
            told=(made.told() if made else {}) | chosen,
        )
        outcome = carry_out(plan.with_layers(made.layers) if made else plan, request, progress)
    return outcome if options.push_to_hub is None or options.dry_run else _pushed(outcome, options.push_to_hub, options)


def _pushed(outcome: Outcome, hub_id: str, options: ConvertOptions) -> Outcome:
    from mha2gqa.files.upload import push

    return replace(outcome, pushed=push(outcome.output, hub_id, private=options.private))


def _check(options: ConvertOptions) -> None:
    """Refuse what options, paths and small files say alone, before a model is read or what runs one is imported.

    Raises:
        Mha2GqaError: Options contradict one another, or text is not there.
    """
    if not options.is_latent:
        _whole_layers(options)
    parse_size(options.max_shard_size)
    parse_size(options.activation_memory, "--activation-memory")
    if options.data:
        from mha2gqa.texts.words import NONE, check_named

        if options.refine is not None and options.data == (NONE,):
            raise CalibrationError(
                f"--refine {options.refine} learns from text, and --data {NONE} gives it none",
                remedy=f"Leave out --data {NONE}, name text in its place, or leave out --refine",
            )
        if not options.dry_run:  # a plan needs no text
            check_named(options.data)


def _target(options: ConvertOptions) -> Target:
    if options.is_latent:
        return Latent(
            latent=options.latent,
            rope_width=options.rope_width,
            groups=options.latent_like_groups,
            frequencies=options.rope_frequencies,
        )
    parts: list[Target] = []
    if options.window is not None:
        layers = None if options.window_layers is None else parse_layers(options.window_layers)
        parts.append(Window(options.window, layers))
    if isinstance(options.groups, tuple):
        parts.append(HeadsByLayer(options.groups))
    elif isinstance(options.groups, int | Mapping):
        parts.append(KvHeads(options.groups))
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _whole_layers(options: ConvertOptions) -> bool:
    """Return whether heads cannot be merged one quantity at a time.

    Raises:
        CalibrationError: Options contradict one another.
        MethodError: There is no such method.
    """
    asked = demand(options.method, options.grouping, options.refine)
    if options.data and not asked.reads_text and AUTO not in (options.groups, options.window_layers):
        raise CalibrationError(
            f"--method {options.method} makes no use of --data",
            expected=f"--method {' or '.join([*text_readers(), AUTO])}, --grouping similar, or --refine",
        )
    if options.refine is not None and options.method == AUTO:
        raise CalibrationError("--method auto chooses how far to refine", remedy="Leave out --refine, or name a method")
    return asked.whole_layers
