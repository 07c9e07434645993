"""The cases of `compare_outputs.py`: command lines over its inputs, in groups that know nothing of one another.

A case is a name `kind/...` and steps, which are command lines that run one after the other in the case's own folder;
later ones read what earlier ones wrote. The kinds are in `all_cases`. `{inputs}` in a command line is the folder of the
inputs.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare_refusals import FILES, REFUSALS

COMMANDS = ("convert", "expand", "inspect", "verify", "uptrain", "bench", "sweep", "demo")

_THOROUGH = """
    afmoe apertus aria_text bamba bitnet blt canary cohere cohere2 dbrx dia diffllama doge ernie4_5 eurobert exaone4
    falcon flex_olmo gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe glm4v gpt_bigcode
    gpt_oss granite granite_swa inkling_text jamba laguna lfm2 llama llama4_text llava mimo_v2_flash minimax_m2 mistral
    mixtral mllama molmo2 moshi nanochat nemotron nemotron_h olmo olmo2 olmoe paligemma phi phi3 phimoe qwen2
    qwen2_5_vl qwen2_moe qwen3 qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma smollm3 stablelm starcoder2
    t5gemma t5gemma2 vaultgemma zamba2
    """
"""Model types that are converted by every method: each layout, freedom, rotation, norm, bias and number of counts."""


@dataclass(frozen=True)
class Case:
    """Command lines that run one after the other in a folder of their own."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    files: Mapping[str, str] = field(default_factory=dict)
    """Text files that are there before the first step, in folders that are made."""
    fresh: bool = False
    """The last step starts Python anew, with nothing imported."""

    def to_json(self, inputs: Path) -> dict[str, Any]:
        """Return what a driver needs to run it, as plain JSON values."""
        steps = [[word.replace("{inputs}", str(inputs)) for word in step] for step in self.steps]
        return {"steps": steps, "files": dict(self.files), "fresh": self.fresh}


def case(name: str, *lines: str, files: Mapping[str, str] | None = None, fresh: bool = False) -> Case:
    """Return a case of command lines as a shell would read them."""
    return Case(name, tuple(tuple(shlex.split(line)) for line in lines), files or {}, fresh)


def all_cases(inputs: Path, checkpoints: list[Path]) -> Iterator[Case]:
    """Yield every case.

    Args:
        inputs: Folder of the inputs, see `compare_inputs.py`.
        checkpoints: Further checkpoints.
    """
    yield case("help/app", "--help", "", "nonsense")
    yield from (case(f"help/{command}", f"{command} --help") for command in COMMANDS)
    yield from _models(json.loads((inputs / "catalogue.json").read_text()))
    yield from (_checkpoint(path) for path in checkpoints)
    yield from _reference()
    yield from _formats()
    yield from _readers()
    yield from _verify()
    yield from _uptrain()
    yield from _sweep_and_bench()
    yield from _refusals(sorted(path.name for path in (inputs / "damaged").iterdir()))
    yield from _fresh()


def _models(catalogue: list[dict[str, Any]]) -> Iterator[Case]:
    """Every checkpoint of the catalogue, those of one model type together."""
    for kind, name in sorted({(one["kind"], one["type"]) for one in catalogue}):
        members = [one for one in catalogue if (one["kind"], one["type"]) == (kind, name)]
        thorough = kind != "family" or name in _THOROUGH.split()
        lines = [
            *_model(members[0], thorough=thorough),
            *(line for one in members[1:] for line in _variant(one, thorough)),
        ]
        yield case(f"{kind}/{name}", *lines)


def _model(one: Mapping[str, Any], *, thorough: bool) -> Iterator[str]:
    name, source = one["name"], _source(one)
    asked = _asked(one)
    yield from _basic(source, asked, f"{name}-mean")
    yield f"verify {name}-mean --json --level file"
    if thorough:
        yield f"convert {source} -g {asked} --method aligned -o {name}-aligned"
        yield f"convert {source} -g {asked} --grouping similar --json -o {name}-similar"
        yield f"convert {source} -g {one['groups'][-1]} --method first -o {name}-first"
        yield f"convert {source} -g {one['groups'][-1]} --method random --seed 1 -o {name}-random"
        yield f"expand {name}-mean -o {name}-wide"
    if one["type"] in ("t5", "bart", "whisper"):
        yield f"convert {source} -g 2 --attention cross --method aligned -o {name}-cross"
        yield f"convert {source} -g 1 --attention encoder -o {name}-encoder"
        yield f"convert {source} -g 2 --attention self,cross --grouping similar -o {name}-both"


def _variant(one: Mapping[str, Any], thorough: bool) -> Iterator[str]:
    """Another checkpoint of a model type that was inspected already."""
    name, source = one["name"], _source(one)
    yield f"convert {source} -g {_asked(one)} --json -o {name}-mean"
    yield f"verify {name}-mean --json --level file"
    if thorough:
        yield f"convert {source} -g {_asked(one)} --method aligned --json -o {name}-aligned"
        yield f"convert {source} -g {_asked(one)} --grouping similar -o {name}-similar"
        yield f"expand {name}-mean --json -o {name}-wide"


def _source(one: Mapping[str, Any]) -> str:
    return f"{{inputs}}/models/{one['name']}"


def _asked(one: Mapping[str, Any]) -> str:
    return "decoder=2,cross=1" if one["kind"] == "pairs" else str(one["groups"][0])


def _basic(source: str, groups: Any, output: str) -> Iterator[str]:
    yield f"inspect {source} --json"
    yield f"inspect {source}"
    yield f"convert {source} -g {groups} --dry-run"
    yield f"convert {source} -g {groups} --json -o {output}"


def _checkpoint(path: Path) -> Case:
    """A real checkpoint, to half of its KV heads where they are even."""
    config = json.loads((path / "config.json").read_text())
    config = config.get("text_config", config)
    keys = ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads", "decoder_attention_heads")
    heads = next((config[key] for key in keys if isinstance(config.get(key), int)), 1)
    groups = heads // 2 if heads % 2 == 0 else 1
    source = shlex.quote(str(path))
    lines = [f"verify {kind} --json --level file" for kind in ("mean", "aligned")]
    aligned = f"convert {source} -g {groups} --method aligned --json -o aligned"
    return case(f"checkpoint/{path.name}", *_basic(source, groups, "mean"), aligned, *lines)


def _reference() -> Iterator[Case]:
    """The reference checkpoint, which is what a command takes without MODEL."""
    yield case("reference/inspect", "inspect", "inspect --json")
    for groups in (4, 2, 1):
        ways = ("mean", "first", "random --seed 3", "aligned", "mean --grouping similar")
        lines = [f"convert -g {groups} --method {way} -o {place}" for place, way in enumerate(ways)]
        yield case(f"reference/methods-{groups}", *lines, f"convert -g {groups}", "expand 0 -o wide --heads 8 --json")
    yield case("reference/same", "convert -g 8", "verify --level file --level load --json")
    quick = "--tokens 2048 --context 128 --steps 3"
    yield case("reference/similar", "convert -g 2 --method aligned --grouping similar --json -o out")
    for refine, way in (
        ("refit", "-g 4"),
        ("distil", "-g 2 --method aligned --json"),
        ("joint", "-g 4 --method aligned"),
    ):
        yield case(f"reference/{refine}", f"convert {way} --refine {refine} {quick} -o out")
    yield case("reference/aligned-text", f"convert -g 2 --method aligned {quick} --data {{inputs}}/texts/code.txt")
    yield case("reference/auto", f"convert -g 4 --method auto {quick} --json --max-ppl-increase 5%")
    columns = "--data {inputs}/texts/code.jsonl --column body --data {inputs}/texts/code.txt"
    yield case("reference/data", f"convert -g 4 --refine refit {quick} {columns} --activation-memory 1MB -o out --json")
    yield case("reference/self", "convert -g 4 --refine refit --data self --tokens 512 --context 64 --seed 5 -o out")
    recipes = ("aligned-distil", "llama-2-7b-gqa8", "mqa", "reference")
    lines = [f"convert {model} --config {{recipes}}/{name}.yaml --dry-run" for name in recipes for model in _MODELS]
    yield case("reference/recipes", *(line.replace("{recipes}", "{inputs}/recipes") for line in lines))


_MODELS = ("", "{inputs}/references/float32")


def _formats() -> Iterator[Case]:
    """Copies of the reference in other dtypes, files and shards."""
    for name in ("bfloat16", "float16", "float32", "float64", "bin", "bin-shards", "shards"):
        source = f"{{inputs}}/references/{name}"
        lines = [f"convert {source} -g 2 --method {way} -o {way}" for way in ("mean", "aligned", "random")]
        more = (
            f"convert {source} -g 1 --max-shard-size 1MB --json -o small",
            "expand mean -o wide --max-shard-size 3MB",
        )
        yield case(f"formats/{name}", f"inspect {source}", *lines, *more, "verify small --level file --json")


def _readers() -> Iterator[Case]:
    """Tiny models that can read text, improved on it and verified."""
    quick = "--data {inputs}/texts/letters.txt --tokens 1024 --context 24"
    names = (
        "llama",
        "qwen3",
        "gemma2",
        "phi3",
        "olmo2",
        "qwen2_moe",
        "eurobert",
        "gpt2",
        "bloom",
        "bert",
        "t5",
        "base",
    )
    for name in names:
        source = f"{{inputs}}/readers/{name}"
        lines = (
            f"convert {source} -g 2 --method aligned --refine refit {quick} -o refit",
            f"convert {source} -g 2 --refine distil --steps 3 {quick} -o distil --json",
            f"verify refit {quick} --json",
            f"verify distil {quick}",
        )
        yield case(f"readers/{name}", *lines)
    source = "{inputs}/readers/qwen3"
    more = f"convert {source} -g 1 --method auto --steps 3 {quick}"
    yield case("readers/auto", f"{more} --max-ppl-increase 0 -o auto", f"verify auto {quick} --level outputs --json")
    way = "--method aligned --grouping similar --refine joint"
    yield case("readers/similar", f"convert {source} -g 2 {way} --steps 3 {quick} -o out", "verify out --level file")
    own = "convert {inputs}/readers/llama -g 2 --refine joint --data self --tokens 600 --context 24 --steps 3 -o joint"
    yield case("readers/self", own, "verify joint --tokens 200 --context 24 --json")


def _verify() -> Iterator[Case]:
    """All levels, the page and the card, of what three ways make of the reference."""
    quick = "--tokens 1024 --context 128"
    ways = {"mean": "", "aligned": "--method aligned", "refit": "--refine refit --tokens 2048 --context 128"}
    for name, way in ways.items():
        lines = (
            f"convert -g 4 {way} -o made",
            f"verify made {quick} --json",
            f"verify made {quick} --report page --write-card --max-ppl-increase 9 --max-kl 9 --min-top1 0",
            f"verify made --data {{inputs}}/texts/code.txt --level outputs {quick} --write-card --seed 4",
        )
        yield case(f"verify/{name}", *lines)
    tasks = "verify made --level file --tasks next_word --task-path {inputs}/tasks --json"
    yield case("verify/tasks", "convert -g 2 -o made", tasks)
    expanded = ("convert -g 2 -o narrow", "expand narrow -o wide", f"verify wide {quick}")
    yield case("verify/expanded", *expanded, "verify wide --level file --against {inputs}/references/bfloat16")
    base = "verify made --level load --level outputs --tokens 256 --context 32 --data {inputs}/texts/letters.txt"
    yield case("verify/types", "convert {inputs}/readers/llama -g 2 -o made", f"{base} --dtype bfloat16 --batch-size 2")


def _uptrain() -> Iterator[Case]:
    """Trainings of two steps: what trains by each objective, of running text and of pairs."""
    trainer = "--trainer use_cpu=true --trainer per_device_train_batch_size=2 --trainer logging_steps=1"
    quick = f"--steps 2 --context 64 --held-out-tokens 256 {trainer}"
    base = ("convert -g 4 -o made",)
    runs = (
        ("attention", "distil", "--report page --hidden-weight 0.1"),
        ("all", "lm", "--trainer eval_steps=1 --trainer save_steps=1 --json"),
        ("kv", "mix", "--lm-weight 0.3 --temperature 2 --max-shard-size 2MB"),
        (
            "lora",
            "distil",
            "--lora-rank 4 --data {inputs}/texts/code.txt --data {inputs}/texts/code.jsonl --column body",
        ),
    )
    for train, objective, more in runs:
        line = f"uptrain made --train {train} --objective {objective} {more} {quick} -o out"
        yield case(f"uptrain/{train}", *base, line, "verify out --level file --level load --json")
    pairs = f"--data {{inputs}}/texts/pairs.jsonl --target-context 12 {quick}"
    for name, more in (("t5", "--objective mix --report page"), ("bart", "--train all --source-prefix x --json")):
        made = f"convert {{inputs}}/readers/{name} -g decoder=2,cross=1 -o made"
        yield case(f"uptrain/{name}", made, f"uptrain made {more} {pairs} -o out", "verify out --level file --json")
    letters = f"--data {{inputs}}/texts/letters.jsonl {quick.replace('64', '24')}"
    lines = (
        "convert {inputs}/readers/qwen3 -g 2 -o made",
        f"uptrain made {letters} --dry-run",
        f"uptrain made {letters} --tokens 96 -o out".replace("--steps 2", ""),
        f"uptrain made {letters} -o other --alpha 0.5 --pretraining-tokens 400".replace("--steps 2", ""),
        f"uptrain out {letters} -o again --report page",
    )
    yield case("uptrain/tiny", *lines)
    own = "convert {inputs}/readers/llama -g 2 -o made", f"uptrain --data self --samples s.jsonl {quick}"
    yield case("uptrain/self", own[0], own[1].replace("64", "24"))
    yield case("uptrain/recipe", *base, "uptrain --config {inputs}/recipes/reference-cpu.yaml --dry-run")


def _sweep_and_bench() -> Iterator[Case]:
    """Sweeps, which go on from their results, and measurements of speed, of which only the rest is compared."""
    quick = "--tokens 1024 --eval-tokens 512 --context 64 --steps 2"
    lines = (
        f"sweep -g 4 --methods mean,aligned {quick} --no-sensitivity --json",
        f"sweep -g 4,1 --methods mean,aligned {quick} --max-ppl-increase 10% --report page --keep kept",
        f"sweep -g 4 --methods mean --refine none,refit {quick} --no-sensitivity --force",
    )
    yield case("sweep/reference", *lines)
    letters = "--data {inputs}/texts/letters.txt --tokens 600 --eval-tokens 240 --context 24 --steps 2"
    yield case("sweep/tiny", f"sweep {{inputs}}/readers/qwen3 {letters} --grouping similar --refine none,distil --json")
    quick = "--tokens 2 --turns 2 --batch 1,3 --context 8,24 --memory 100MB"
    shape = "bench --shape {inputs}/readers/llama/config.json -g 1"
    made = "convert {inputs}/readers/llama -g 2 -o made"
    both = (f"bench made {quick} --attention grouped --report page", f"bench made {quick} --attention eager --json")
    yield case("bench/shape", f"{shape} {quick} --json", f"{shape} {quick} --cache static")
    yield case("bench/pair", made, *both)
    pairs = "convert {inputs}/readers/t5 -g 2 -o made"
    yield case("bench/encoder-decoder", pairs, f"bench made {quick} --target-context 4 --json")


def _refusals(damaged: list[str]) -> Iterator[Case]:
    """Wrong command lines, and every command on checkpoints that it must refuse."""
    places = {
        "llama": "{inputs}/readers/llama",
        **{name: f"{{inputs}}/{name}" for name in ("models", "texts", "damaged")},
    }
    for name, text in REFUSALS.items():
        lines = (line.strip().format(inputs="{inputs}", **places) for line in text.strip().splitlines())
        yield case(f"refused/{name}", *lines, files=FILES.get(name))
    for name in damaged:
        source = f"{{inputs}}/damaged/{name}"
        convert = f"convert {source} -g 2 -o out"
        yield case(
            f"damaged/{name}", f"inspect {source}", convert, f"{convert} --method aligned", f"expand {source} -o o"
        )


def _fresh() -> Iterator[Case]:
    """A command in a Python that has imported nothing, as a user starts it."""
    yield case("fresh/verify", "convert -g 4 -o made", "verify made --level file --level load", fresh=True)
