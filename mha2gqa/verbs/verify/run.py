"""`mha2gqa verify`: a converted checkpoint held against its original: its files, its behaviour, its outputs.

Standard benchmarks, the page and the card come on top where they are asked for. Every refusal is made before the
first byte is compared.
"""

from dataclasses import replace

from mha2gqa.engines import check_installed
from mha2gqa.errors import EngineError
from mha2gqa.families.blueprint import asking
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import load_tokenizer
from mha2gqa.pages.page import check_place, write_page
from mha2gqa.progress import QUIET, WRITING, Advance, Progress
from mha2gqa.record.pair import Pair, find_pair
from mha2gqa.verbs.verify.benchmarks import Suite, find_tasks, run_tasks
from mha2gqa.verbs.verify.card import check_card, write_numbers
from mha2gqa.verbs.verify.embeddings_level import compare_embeddings
from mha2gqa.verbs.verify.file_level import check_files
from mha2gqa.verbs.verify.head_level import compare_head
from mha2gqa.verbs.verify.judge import judge, limits_for
from mha2gqa.verbs.verify.levels import Compared, EmbeddingsLevel, EngineLevel, HeadLevel, OutputsLevel
from mha2gqa.verbs.verify.load_level import Models, check_loading
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Benchmark, Limits, Verification
from mha2gqa.verbs.verify.outputs_level import EvaluationText, compare_outputs, find_text, writes_itself
from mha2gqa.verbs.verify.remedy import remedy_for
from mha2gqa.verbs.verify.tensors import head_similarity
from mha2gqa.verbs.verify.windows import beyond_windows


@asking()
def verify(options: VerifyOptions, progress: Progress = QUIET) -> Verification:
    """Verify a converted checkpoint against its original.

    Args:
        options: What to verify, on which text, within which limits.
        progress: Told of every run of bytes and every batch of tokens.

    Returns:
        What was found, and the verdict.

    Raises:
        Mha2GqaError: It cannot be verified: something is missing, or the two do not belong together.
    """
    pair = find_pair(options.converted, options.against)
    options = beyond_windows(pair, options)
    _check_places(options, pair)
    _check_engine(options, pair)
    suite = find_tasks(options.tasks, options.task_path, pair.original.architecture.outline) if options.tasks else None
    models = Models(pair, dtype=options.dtype, device=options.device)
    limits = limits_for(pair.conversion, options)
    text = _text(models, options, progress.part(WRITING)) if "outputs" in options.levels else None
    file = check_files(pair, progress.part("files")) if "file" in options.levels else None
    readable = file is None or file.readable
    with progress.under_way("loading and running both models"):
        load = check_loading(models, options.seed) if "load" in options.levels and readable else None
    with progress.under_way("another engine"):
        engine = _run_engine(models, options) if options.engine and readable else None
    compared: Compared | str | None = text if isinstance(text, str) else None
    if isinstance(text, EvaluationText):
        is_there = readable and (load is None or models.converted is not None)
        rest = models, text, limits, options, progress.part("outputs")
        with progress.under_way("answers of both models, then the text"):
            compared = _compare(*rest) if is_there else "the converted checkpoint cannot be run"
    not_compared, found = (compared, None) if isinstance(compared, str) else (None, compared)
    benchmarks = _score(suite, models, progress.part("benchmarks")) if suite is not None and readable else ()
    verdict, reasons = judge(file, load, engine, found, not_compared, pair.conversion.effect)
    if suite is not None and not benchmarks:
        reasons = (*reasons, _not_scored(models))
    report = Verification(
        original=pair.original.name,
        converted=str(pair.converted),
        conversion=pair.conversion,
        versions=pair.record.versions,
        limits=limits,
        verdict=verdict,
        reasons=reasons,
        file=file,
        load=load,
        outputs=found if isinstance(found, OutputsLevel) else None,
        embeddings=found if isinstance(found, EmbeddingsLevel) else None,
        head=found if isinstance(found, HeadLevel) else None,
        engine=engine,
        similarity=head_similarity(pair) if options.report is not None else (),
        benchmarks=benchmarks,
    )
    report = replace(report, remedy=remedy_for(report, pair, options))
    _write(report, options, pair)
    return report


def _text(models: Models, options: VerifyOptions, advance: Advance) -> EvaluationText | str:
    """Return the text to compare on, or why there is none."""
    source = models.pair.original.source
    return _unreadable(models, options) or find_text(source, models.config, lambda: models.original, options, advance)


def _unreadable(models: Models, options: VerifyOptions) -> str | None:
    """Return why there is no text that both models could be compared on, whatever is named."""
    kind = kind_of(models.pair.original.architecture.outline)
    if not kind.reads_tokens:
        return f"{kind.name} reads {kind.reads}, not text"
    if kind.head == "other":
        return f"what {kind.name} gives is no distribution of tokens, no labels and no hidden states"
    if writes_itself(options, models.pair.original.source) and models.drawn:
        return f"{_drawn(models)}, and so it cannot write the text; with --data its hidden states are compared"
    return None


def _not_scored(models: Models) -> str:
    why = _drawn(models) if models.drawn else "the converted checkpoint does not load"
    return f"The benchmarks were not run: {why}."


def _drawn(models: Models) -> str:
    more = f" and {len(models.drawn) - 1} more" if len(models.drawn) > 1 else ""
    return f"the original lacks {models.drawn[0]}{more}, which each load draws at random"


def _compare(
    models: Models, text: EvaluationText, limits: Limits, options: VerifyOptions, advance: Advance
) -> Compared | str:
    """Compare what both models give, by the measure that fits their kind, or return why not."""
    if models.is_random:
        return _drawn(models)
    kind = kind_of(models.original)
    if kind.gives_embeddings:
        return compare_embeddings(models, text, limits, options, advance)
    compare = compare_head if kind.has_task else compare_outputs
    return compare(models, text, limits, options, advance)


def _check_places(options: VerifyOptions, pair: Pair) -> None:
    if options.report is not None:
        check_place(options.report)
    if options.write_card:
        check_card(pair.converted)


def _check_engine(options: VerifyOptions, pair: Pair) -> None:
    if options.engine is None:
        return
    check_installed(options.engine)
    kind = kind_of(pair.original.architecture.outline)
    if kind.has_encoder or not (kind.predicts_next_token and kind.reads_tokens):
        raise EngineError(
            f"--engine {options.engine} runs decoders of text alone here, and {pair.converted} is none",
            remedy="Leave --engine out",
        )


def _run_engine(models: Models, options: VerifyOptions) -> EngineLevel | None:
    if models.converted is None or models.drawn or options.engine is None:
        return None
    from mha2gqa.verbs.verify.engine_level import check_engine_level

    return check_engine_level(models, models.converted, options.engine, options.seed)


def _score(suite: Suite, models: Models, advance: Advance) -> tuple[Benchmark, ...]:
    if models.converted is None or models.drawn:
        return ()
    return run_tasks(suite, models.original, models.converted, load_tokenizer(models.pair.original.directory), advance)


def _write(report: Verification, options: VerifyOptions, pair: Pair) -> None:
    if options.report is not None:
        from mha2gqa.verbs.verify.page import verify_page

        write_page(options.report, verify_page(report))
    if options.write_card:
        write_numbers(report, pair.converted)
