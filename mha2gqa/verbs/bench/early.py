"""What `bench` refuses before it imports what runs models: by its options, by paths and by small files alone."""

from mha2gqa.pages.page import check_place
from mha2gqa.record.pair import check_pair
from mha2gqa.units import parse_size
from mha2gqa.verbs.bench.asked import check_engine, check_subjects
from mha2gqa.verbs.bench.options import BenchOptions


def check(options: BenchOptions) -> None:
    """Refuse what needs no model.

    Raises:
        Mha2GqaError: Options do not go together, a shape, engine, directory or record is not there, or a page cannot
            be written.
    """
    check_engine(options)
    check_subjects(options)
    parse_size(options.memory, "--memory")
    if options.report is not None:
        check_place(options.report)
    if options.shape is None:
        check_pair(options.converted, options.against)
