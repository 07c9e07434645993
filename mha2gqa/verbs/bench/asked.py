"""What the options of `bench` say alone: judged before anything that runs a model is imported."""

from pathlib import Path

from mha2gqa import engines
from mha2gqa.errors import TimingError
from mha2gqa.verbs.bench.options import BenchOptions

SHAPES = Path(__file__).parents[2] / "shapes"
"""Configs of well-known models, by name."""
OWN = "own"
"""The kind of cache of an engine that has but one."""


def check_engine(options: BenchOptions) -> tuple[str, ...]:
    """Return the kinds of cache that the engine has.

    Raises:
        EngineError: The engine is not installed.
        TimingError: It cannot do what the options ask.
    """
    if options.engine == "transformers":
        return options.cache or ("dynamic", "static")
    engines.check_installed(options.engine)
    given = {"--cache": options.cache, "--attention": options.attention, "--shape": options.shape}
    if named := [name for name, value in given.items() if value]:
        raise TimingError(
            f"--engine {options.engine} makes no use of {', '.join(named)}",
            expected="two checkpoints; the cache and the attention are the engine's own",
        )
    if not engines.ENGINES[options.engine].batches and set(options.batch) != {1}:
        raise TimingError(f"--engine {options.engine} decodes one sequence at a time here", expected="--batch 1")
    return (OWN,)


def check_subjects(options: BenchOptions) -> None:
    """Refuse options of checkpoints and of shapes that do not go together, and shapes that are not there.

    Raises:
        TimingError: There are such.
    """
    second = (options.groups, options.latent, options.rope_width)
    if options.shape is None:
        if second != (None, None, None):
            raise TimingError(
                "--groups, --latent and --rope-width belong to --shape",
                remedy="Convert the checkpoint to as many groups, or leave it",
            )
        return
    if options.converted is not None or options.against is not None:
        raise TimingError("--shape takes the place of checkpoints", remedy="Leave out the one or the others")
    if [one is not None for one in second] not in ([True, False, False], [False, True, True]):
        raise TimingError(
            "--shape needs --groups, or --latent and --rope-width in their place", expected="one second model"
        )
    shape_file(options.shape)


def shape_file(shape: str) -> Path:
    """Return the config of a named shape, or the file that is named.

    Raises:
        TimingError: There is none.
    """
    path = Path(shape) if shape.endswith(".json") else SHAPES / f"{shape}.json"
    if not path.is_file():
        known = sorted(one.stem for one in SHAPES.glob("*.json"))
        raise TimingError(f"There is no shape {shape!r}", expected=f"a config.json, or one of {', '.join(known)}")
    return path
