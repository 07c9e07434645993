"""`mha2gqa verify`: a converted checkpoint held against its original: its files, its behaviour, its outputs.

Standard benchmarks, the page and the card come on top where they are asked for. Every refusal is made before the
first byte is compared.
"""

from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import load_tokenizer
from mha2gqa.pages.page import check_place, write_page
from mha2gqa.progress import QUIET, Advance, Progress
from mha2gqa.record.pair import Pair, find_pair
from mha2gqa.verbs.verify.benchmarks import Suite, find_tasks, run_tasks
from mha2gqa.verbs.verify.card import check_card, write_numbers
from mha2gqa.verbs.verify.embeddings_level import compare_embeddings
from mha2gqa.verbs.verify.file_level import check_files
from mha2gqa.verbs.verify.judge import judge, limits_for
from mha2gqa.verbs.verify.load_level import Models, check_loading
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Benchmark, Verification
from mha2gqa.verbs.verify.outputs_level import compare_outputs, find_text
from mha2gqa.verbs.verify.tensors import head_similarity


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
    _check_places(options, pair)
    suite = find_tasks(options.tasks, options.task_path, pair.original.architecture.outline) if options.tasks else None
    models = Models(pair, dtype=options.dtype, device=options.device)
    limits = limits_for(pair.conversion, options)
    text = None
    if "outputs" in options.levels:
        text = find_text(pair.original.source, models.config, lambda: models.original, options)
    file = check_files(pair, progress.part("files")) if "file" in options.levels else None
    readable = file is None or file.readable
    load = check_loading(models, options.seed) if "load" in options.levels and readable else None
    outputs = embeddings = None
    if text is not None and readable and (load is None or models.converted is not None):
        rest = models, text, limits, options, progress.part("outputs")
        if kind_of(models.original).gives_embeddings:
            embeddings = compare_embeddings(*rest)
        else:
            outputs = compare_outputs(*rest)
    benchmarks = _score(suite, models, progress.part("benchmarks")) if suite is not None and readable else ()
    verdict, reasons = judge(file, load, outputs or embeddings, wanted_outputs=text is not None)
    if suite is not None and not benchmarks:
        reasons = (*reasons, "The benchmarks were not run: the converted checkpoint does not load.")
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
        outputs=outputs,
        embeddings=embeddings,
        similarity=head_similarity(pair) if options.report is not None else (),
        benchmarks=benchmarks,
    )
    _write(report, options, pair)
    return report


def _check_places(options: VerifyOptions, pair: Pair) -> None:
    if options.report is not None:
        check_place(options.report)
    if options.write_card:
        check_card(pair.converted)


def _score(suite: Suite, models: Models, advance: Advance) -> tuple[Benchmark, ...]:
    if models.converted is None:
        return ()
    return run_tasks(suite, models.original, models.converted, load_tokenizer(models.pair.original.directory), advance)


def _write(report: Verification, options: VerifyOptions, pair: Pair) -> None:
    if options.report is not None:
        from mha2gqa.verbs.verify.page import verify_page

        write_page(options.report, verify_page(report))
    if options.write_card:
        write_numbers(report, pair.converted)
