"""Has engines that others wrote run tiny converted checkpoints of many families, and writes what came of it.

    python -m scripts.try_engines make FOLDER            originals, conversions, and a GGUF file of each
    python -m scripts.try_engines run ENGINE FOLDER      `verify --engine` on each, where that engine is installed
    python -m scripts.try_engines table FOLDER           docs/results/engines.md, and what cards say, of what was run

`make engines` does all of it. What is in FOLDER already is not done again, so that a run goes on where it ended; an
engine that takes its process down in a case has said so by then.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mha2gqa import ConvertOptions, ExportOptions, VerifyOptions, convert, export, verify
from mha2gqa.engines.llama_cpp import gguf_path
from mha2gqa.errors import Mha2GqaError
from mha2gqa.files.reader import read_json
from mha2gqa.record.card import ENGINES

PAGE = Path(__file__).parents[1] / "docs" / "results" / "engines.md"
RESULTS = "{}.json"
GGUF = "gguf.json"
"""What the converter refused: case -> its message."""
CRASHED = "ended the process"
_VOCABULARY = 384
_WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 128),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), 32),
}
"""Twice those of the tests' tiny configs, by the names that model types have for them: vLLM's attention on a CPU takes
no narrower heads. Gemma's scale goes with their width, which llama.cpp takes for granted."""


@dataclass(frozen=True)
class Case:
    """One original, and what becomes of it."""

    name: str
    model_type: str
    become: Mapping[str, Any] = field(default_factory=lambda: {"groups": 2})
    """Options of `convert`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Of the tiny config."""


_NATIVE = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "phi3", "olmo", "olmo2", "olmoe", "cohere"),
    *("stablelm", "granite", "nemotron", "gemma", "gemma2", "starcoder2"),
)
_PLAIN = {"mistral": {"sliding_window": None}}
"""What the tiny configs of tests have, and most checkpoints of the type do not."""
_WRITTEN_OTHERWISE = ("gpt_neox", "gptj", "codegen")
_SHIPPED = ("gpt2", "opt", "bloom", "mpt")
_LATENT = {"latent": 24, "rope_width": 8, "data": ("self",), "tokens": 2048}
CASES = (
    *(Case(name, name, overrides=_PLAIN.get(name, {})) for name in _NATIVE),
    Case("llama with biases", "llama", overrides={"attention_bias": True}),
    Case("falcon, MQA", "falcon", {"groups": 1}),
    *(Case(name, name) for name in _WRITTEN_OTHERWISE),
    Case("gpt2, MQA", "gpt2", {"groups": 1}, {"n_inner": 512}),
    *(Case(name, name) for name in _SHIPPED),
    Case("llama by layer", "llama", {"groups": (1, 2)}, {"intermediate_size": 256}),
    Case("llama, window", "llama", {"window": 16}),
    Case("qwen2, window", "qwen2", {"window": 16}),
    Case("llama, latent", "llama", _LATENT),
    Case("qwen2, latent", "qwen2", _LATENT),
    Case("llama, latent, free speeds", "llama", _LATENT | {"rope_frequencies": "free"}),
)


def make(folder: Path) -> None:
    """Write the checkpoints of all cases, and the GGUF file of each that the converter takes."""
    refused = _read(folder / GGUF)
    for case in CASES:
        output = _place(folder, case)
        if not output.exists():
            _convert(folder, case, output)
        if case.name in refused or gguf_path(output, "f32").exists():
            continue
        try:
            export(ExportOptions(converted=output, gguf="f32"))
        except Mha2GqaError as error:
            refused[case.name] = str(error)
        _write(folder / GGUF, refused)


def _convert(folder: Path, case: Case, output: Path) -> None:
    from tests.families.tiny import save_tiny

    source = folder / "originals" / output.name
    save_tiny(case.model_type, source, vocab_size=_VOCABULARY, **_widths(case.model_type), **case.overrides)
    _save_tokenizers(source)
    convert(ConvertOptions(model=str(source), output=output, **case.become))


def _widths(model_type: str) -> dict[str, Any]:
    known = {one.name for one in dataclasses.fields(CONFIG_MAPPING[model_type])}
    return {name: width for name, width in _WIDTHS.items() if name in known}


def _save_tokenizers(directory: Path) -> None:
    """Write the tokenizer of both kinds that llama.cpp's converter may ask for; engines are given tokens."""
    import sentencepiece

    from tests.verbs.export.subjects import save_byte_tokenizer

    save_byte_tokenizer(directory)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(Path(__file__).read_text(encoding="utf-8").splitlines()),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=_VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (directory / "tokenizer.vocab").unlink()


def run(engine: str, folder: Path) -> None:
    """Have an engine run every case that it has not run yet."""
    path = folder / RESULTS.format(engine)
    found = _read(path)
    for case in CASES:
        if case.name in found:
            continue
        found[case.name] = {"refused": CRASHED}
        _write(path, found)
        found[case.name] = _tried(engine, folder, case)
        _write(path, found)


def _tried(engine: str, folder: Path, case: Case) -> dict[str, Any]:
    directory = _place(folder, case)
    if engine == "llama.cpp" and (why := _read(folder / GGUF).get(case.name)):
        return {"refused": why}
    try:
        report = verify(VerifyOptions(converted=directory, levels=("load",), engine=engine))
    except Mha2GqaError as error:
        return {"refused": str(error)}
    level = report.engine
    if level is None:
        return {"refused": " ".join(report.reasons)}
    return dataclasses.asdict(level) | {"findings": [f"{one.guilty} {one.problem}" for one in level.findings]}


def _place(folder: Path, case: Case) -> Path:
    return folder / case.name.replace(",", "").replace(" ", "-")


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(folder: Path) -> None:
    """Put the table of what has been run into the page of the documents."""
    ran = {path.stem: _read(path) for path in sorted(folder.glob("*.json")) if path.name != GGUF}
    _write(ENGINES, _right(folder, ran))
    lines = [f"| checkpoint | class | {' | '.join(_title(name, found) for name, found in ran.items())} |"]
    lines += ["| --- " * (2 + len(ran)) + "|"]
    lines += [f"| {' | '.join(_row(folder, case, ran))} |" for case in CASES]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- engines -->\n")
    after = rest.partition("<!-- end -->")[2]
    PAGE.write_text(before + "<!-- engines -->\n\n" + "\n".join(lines) + "\n\n<!-- end -->" + after, encoding="utf-8")


def _right(folder: Path, ran: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by model type the engines that were right in every case of it."""
    found: dict[str, list[str]] = {}
    types = [str(read_json(_place(folder, case) / "config.json")["model_type"]) for case in CASES]
    for model_type in dict.fromkeys(types):
        names = [case.name for case, of in zip(CASES, types, strict=True) if of == model_type]
        right = [engine for engine, rows in ran.items() if all(_is_right(rows.get(name)) for name in names)]
        found |= {model_type: right} if right else {}
    return found


def _is_right(one: Mapping[str, Any] | None) -> bool:
    return one is not None and "refused" not in one and not one["findings"]


def _title(name: str, found: Mapping[str, Any]) -> str:
    versions = {one["version"] for one in found.values() if "version" in one}
    return f"{name} {', '.join(sorted(versions))}"


def _row(folder: Path, case: Case, ran: Mapping[str, Any]) -> Iterator[str]:
    yield case.name
    yield str(read_json(_place(folder, case) / "config.json")["architectures"][0]).removesuffix("ForCausalLM")
    for found in ran.values():
        yield _cell(found.get(case.name))


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "not run"
    if "refused" in one:
        return "refused" if one["refused"] != CRASHED else CRASHED
    if one["findings"]:
        return f"**wrong**: {one['mean_difference']:.2g} in the mean"
    measured, formula = one["cache_measured"], one["cache_formula"]
    cache = "" if measured is None else f"; {measured:,.0f}/{formula:,} B"
    return f"{one['largest_difference']:.0e}; {one['agreed']}/{one['written']}{cache}"


def main() -> None:
    """Do what the command line says."""
    word, *rest = sys.argv[1:]
    commands: dict[str, Callable[..., None]] = {"make": make, "run": run, "table": table}
    commands[word](*rest[:-1], Path(rest[-1]))


if __name__ == "__main__":
    main()
