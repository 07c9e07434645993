"""What can be told from options, paths and small files alone is refused before torch or transformers is imported.

Their import takes seconds, which nobody shall wait for to be told of a typing error. Each refusal is run in a process
of its own, forked from one that has imported the command line and nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mha2gqa.cli import VERBS
from tests.verbs.verify.subjects import converted, save_source, save_text

SCRIPT = """
import json, os, sys
from mha2gqa.cli import main

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets")
for number, (place, words) in enumerate(json.loads(sys.argv[1])):
    if os.fork() == 0:
        os.chdir(place)
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = ["mha2gqa", *words]
        try:
            main()
        except SystemExit as ending:
            print("\\nended", ending.code, *(name for name in HEAVY if name in sys.modules), flush=True)
        os._exit(0)
    os.wait()
"""
REFUSED = {
    "sweep source --methods alinged": "There is no method 'alinged'",
    "sweep source --budgets 50%": "No such option",
    "sweep source --cache 2": "--cache",
    "sweep source -g 3": "--groups 3",
    "sweep source --cache 50% --methods mean": "--cache chooses heads",
    "sweep nothing": "No such directory: 'nothing'",
    "sweep source --data missing.txt": "no file 'missing.txt'",
    "sweep source --data text.txt --eval-data text.txt": "named by --data and by --eval-data",
    "sweep source --report text.txt": "text.txt is no directory",
    "sweep source -o text.txt": "does not hold the results of a sweep",
    "sweep source -o made": "it is a directory",
    "sweep source --activation-memory much": "--activation-memory much is no size",
    "convert source -g 2 --method aligned -o made2": "made2 exists",
    "convert source -g 2 --method aligned -o source/inside": "lie inside one another",
    "convert source -g auto --data text.txt -o made2": "made2 exists",
    "convert source --latent 16 --rope-width 4 --data text.txt -o made2": "made2 exists",
    "convert source -g 3 --method aligned": "--groups 3",
    "convert source -g 2 --refine nonsense": "'nonsense' is not one of",
    "convert source -g 2 --method mean --data text.txt": "makes no use of --data",
    "convert source -g 2 --method aligned --data missing.txt": "no file 'missing.txt'",
    "convert source -g 2 --method auto --refine refit": "chooses how far to refine",
    "convert source -g 2 --method aligned --data none --refine refit": "--data none gives it none",
    "convert source -g 2,2,4": "--groups has 3 numbers",
    "convert source -g 2,3": "--groups 3 for it",
    "convert source --window 100000": "--window 100000 is above",
    "convert source --window 16 --window-layers 9": "--window-layers names layer 9",
    "convert source --latent 100000": "cannot be the cache of this model",
    "convert source --latent-like-groups 9": "--latent-like-groups 9 is the cache of more",
    "convert source -g 2 --method aligned --max-shard-size big": "--max-shard-size big is no size",
    "convert nothing -g 2 --method aligned": "No such directory: 'nothing'",
    "expand nothing -o out": "No such directory: 'nothing'",
    "expand source -o made2": "made2 exists",
    "inspect nothing": "No such directory: 'nothing'",
    "verify nothing": "No such directory: 'nothing'",
    "verify source": "There is no mha2gqa.json",
    "verify": "There is no converted checkpoint here",
    "verify made --engine nothing": "'nothing' is not one of",
    "verify made --engine mlx": "which is not installed",
    "verify made --against nowhere": "No such directory: 'nowhere'",
    "verify made --data missing.txt": "no file 'missing.txt'",
    "verify made --data none": "'none' is no text",
    "verify made --tasks some --task-path nowhere": "No such directory: 'nowhere'",
    "verify made --report text.txt": "text.txt is no directory",
    "uptrain made --steps 2 --objective nonsense": "'nonsense' is not one of",
    "uptrain made --steps 2 --train nonsense": "'nonsense' is not one of",
    "uptrain made": "How long to train",
    "uptrain made --steps 2 --tokens 3M": "--steps and --tokens",
    "uptrain made --tokens few": "--tokens is 'few'",
    "uptrain made --steps 2 --temperature 0": "--temperature is 0",
    "uptrain made --steps 2 --trainer output_dir=x": "output_dir is not for recipes to set",
    "uptrain nothing --steps 2": "No such directory: 'nothing'",
    "uptrain source --steps 2": "There is no mha2gqa.json",
    "uptrain made --steps 2 -o made2": "made2 exists",
    "uptrain made --steps 2 --data missing.txt": "no file 'missing.txt'",
    "uptrain made --steps 2 --held-out self": "'self' is no text",
    "uptrain made --steps 2 --resume": "no interrupted run",
    "uptrain made --steps 2 --report text.txt": "text.txt is no directory",
    "bench nothing": "No such directory: 'nothing'",
    "bench source": "There is no mha2gqa.json",
    "bench --shape llama-3-nothing -g 2": "There is no shape",
    "bench --shape llama-2-7b": "--shape needs --groups",
    "bench made -g 2": "belong to --shape",
    "bench made --batch zero": "'zero' is no list",
    "bench made --engine mlx": "not installed",
    "bench made --memory much": "--memory much is no size",
    "export nothing --gguf f16": "nothing",
    "export made": "give --gguf or --push-to-hub",
    "demo text.txt": "text.txt is no directory",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("early")
    source = save_source(directory / "source")
    converted(source, directory / "made", 2)
    (directory / "made2").mkdir()
    (directory / "made2/notes").touch()
    save_text(directory / "text.txt", 1000)
    return directory


def run(commands: dict[str, Path], told: Path) -> dict[str, tuple[str, str]]:
    """Run commands, each in a directory; return how it ended, with what was imported, and what it has printed."""
    cases = [(str(place), words.split()) for words, place in commands.items()]
    subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(cases), str(told)], check=True)
    printed = [(told / str(number)).read_text().rstrip().rpartition("\n") for number in range(len(cases))]
    return {words: (ended, " ".join(text.split())) for words, (text, _, ended) in zip(commands, printed, strict=True)}


@pytest.fixture(scope="module")
def answers(work: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    # Where `verify` alone is run, there shall be no converted checkpoint.
    places = {words: work / "source" if words == "verify" else work for words in REFUSED}
    return run(places, tmp_path_factory.mktemp("told"))


@pytest.mark.parametrize("words", REFUSED)
def test_it_is_refused_before_anything_heavy_is_imported(words: str, answers: dict[str, tuple[str, str]]) -> None:
    ended, said = answers[words]
    assert ended in ("ended 1", "ended 2"), (ended, said)
    assert REFUSED[words] in said


def test_help_needs_nothing_heavy(tmp_path: Path) -> None:
    ended = run(dict.fromkeys([f"{verb} --help" for verb in VERBS], tmp_path), tmp_path)
    assert {one for one, _ in ended.values()} == {"ended 0"}
