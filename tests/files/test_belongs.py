"""What goes into a result beside config and weights: by name, by `auto_map`, by `modules.json`; and what is left.

BELONGS, STAYS   names, one after another, as they lie in repositories of all kinds
"""

import json
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from mha2gqa.errors import CheckpointError
from mha2gqa.files.belongs import belongs
from mha2gqa.files.companions import module_folders
from mha2gqa.files.reader import read_checkpoint
from tests.conftest import COMPANIONS
from tests.hub_server import HubServer

BELONGS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "tekken.json", "vocab.json"),
    *("special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt", "spiece.model", "source.spm"),
    *("sentencepiece.bpe.model", "qwen.tiktoken", "bpe.codes", "dict.txt", "entity_vocab.json", "ice_text.model"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "generation_config.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja", "normalizer.json"),
    *("modeling_falcon.py", "configuration_falcon.py", "tokenization_qwen.py", "custom_generate/generate.py"),
    *(
        "LICENSE",
        "LICENSE.md",
        "license.txt",
        "LICENCE",
        "Notice",
        "NOTICE.txt",
        "USE_POLICY.md",
        "COPYING",
        "CITATION",
    ),
    *("MODEL_LICENSE", "Gemma Terms of Use.txt", "ACKNOWLEDGEMENTS.md", "requirements.txt", "THIRD_PARTY_NOTICES.txt"),
    *("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "hf_quant_config.json"),
    *("architecture.png", "assets/logo.svg", "images/plot.jpg", "qformer_tokenizer/vocab.txt", "labels.txt"),
)
STAYS = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "all_results.json"),
    *("optimizer_0/__0_0.distcp", "global_step10/mp_rank_00_model_states.pt", "zero_to_fp32.py", "latest"),
    *("model.nemo", "model.engine", "model.gguf", "model.onnx", "model.onnx_data", "rust_model.ot", "model.tflite"),
    *("model.safetensors.bak", "tokenizer.json.bak", "vocab.txt~", "weights.tar.gz", "model.zip", "model.pt2"),
    *(
        "params.json",
        "consolidated.safetensors",
        "original/tokenizer.model",
        "onnx/tokenizer.json",
        "adapter/README.md",
    ),
    *("runs/events.out.tfevents.1", "train.log", "nohup.out", "wandb/run/config.yaml", "logs/license.txt"),
    *("train.py", "run.sh", "Dockerfile", "data.jsonl", "eval/results.json", "notebook.ipynb", ".gitattributes"),
    *("config.json", "README.md", "mha2gqa.json", "config.json.bak", "config_old.json", "model.safetensors.index.json"),
    *("assets/weights.bin", "assets/video.mp4", "tokenizer/model.safetensors", "vocab_embeddings.npy", "license.bin"),
    *("a\x1b[2Jtokenizer.json", "\u202etokenizer.json", "LICENSE\udcff", "custom_generate/weights.pt", "uptrain.yaml"),
)


@pytest.mark.parametrize("name", BELONGS)
def test_what_belongs(name: str) -> None:
    assert belongs(PurePath(name))


@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str) -> None:
    assert not belongs(PurePath(name))


def fill(directory: Path, **files: str) -> None:
    for name, content in files.items():
        path = directory / name.replace("__", "/").replace("_py", ".py").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def edit(directory: Path, **keys: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def extra(directory: Path) -> set[str]:
    """What belongs, beside what every tiny checkpoint has."""
    return {path.as_posix() for path in read_checkpoint(directory).companions} - {*COMPANIONS, "generation_config.json"}


def test_what_is_left_is_listed(tiny: Callable[..., Path]) -> None:
    source = tiny()
    fill(source, optimizer_0__a="x", optimizer_0__b="y", notes="z", original__params_json="{}", assets__x="1")
    fill(source, license="free", assets__deep__y="2")
    (source / "assets/logo.png").touch()
    (source / "bad\x07name").touch()
    checkpoint = read_checkpoint(source)
    assert extra(source) == {"license", "assets/logo.png"}
    left = ("assets/deep/", "assets/x", "bad\\x07name", "notes", "optimizer_0/", "original/")
    assert checkpoint.left_behind == left


def test_code_that_auto_map_names_with_what_it_imports(tiny: Callable[..., Path]) -> None:
    source = tiny()
    edit(
        source,
        auto_map={"AutoModel": "main.Model", "AutoTokenizer": ["deep.inside.Tok", None], "AutoConfig": "o/r--x.C"},
    )
    fill(
        source,
        main_py="from .helpers import a\nfrom . import (\n    rope,\n    norm as other,\n)\nimport os\n",
        helpers_py="from .deep.nested import b\nfrom .missing import c\n",
        rope_py="",
        norm_py="from .main import Model",
        deep__inside_py="from ..shared import d\nfrom .nested import b",
        deep__nested_py="",
        deep__unused_py="",
        shared_py="",
        train_py="from .main import Model",
        x_py="of another repository",
    )
    (source / "deep/__init__.py").touch()
    names = {"main", "helpers", "rope", "norm", "deep/inside", "deep/nested", "deep/__init__", "shared"}
    assert extra(source) == {f"{name}.py" for name in names}
    assert set(read_checkpoint(source).left_behind) >= {"train.py", "x.py", "deep/unused.py"}


def test_code_that_other_configs_name(tiny: Callable[..., Path]) -> None:
    source = tiny()
    edit(source, custom_pipelines={"task": {"impl": "pipe.Pipe", "pt": ["AutoModel"]}, "broken": 3}, auto_map="strange")
    (source / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tok.Slow", "tok_fast.Fast"]}}')
    (source / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "proc.P"}}')
    (source / "preprocessor_config.json").write_text("[broken")
    fill(source, pipe_py="", tok_py="", tok_fast_py="", proc_py="", strange_py="")
    configs = {"processor_config.json", "preprocessor_config.json"}
    assert extra(source) == {"pipe.py", "tok.py", "tok_fast.py", "proc.py"} | configs


@pytest.mark.parametrize("reference", ["../evil.Class", "/etc/passwd.Class", "a b.C", ".C", "..x.C", "a/b.C", "C", ""])
def test_references_lead_nowhere_else(tiny: Callable[..., Path], reference: str) -> None:
    source = tiny()
    (source.parent / "evil.py").touch()
    edit(source, auto_map={"AutoModel": reference})
    assert extra(source) == set()


def test_imports_lead_nowhere_else(tiny: Callable[..., Path]) -> None:
    source = tiny()
    (source.parent / "outside.py").touch()
    fill(source, modeling_x_py="from ..outside import a\nfrom ...outside import b\nfrom . import outside\n" * 9)
    assert extra(source) == {"modeling_x.py"}


def modules(*paths: str, kind: str = "sentence_transformers.models.Pooling") -> str:
    return json.dumps([{"idx": number, "path": path, "type": kind} for number, path in enumerate(paths)])


def test_folders_that_modules_json_names_come_with_their_weights(tiny: Callable[..., Path], cli: Callable) -> None:
    source = tiny()
    (source / "modules.json").write_text(
        modules("", "1_Pooling", "2_Dense", "3_Normalize", "deep/er", kind="own.Dense")
    )
    fill(source, **{"1_Pooling__config_json": "{}", "2_Dense__config_json": "{}", "2_Dense__pytorch_model.bin": "w"})
    fill(
        source, **{"2_Dense__model.safetensors": "w", "deep__er__x.pt": "w", "4_Other__config_json": "{}", "own_py": ""}
    )
    (source / "2_Dense/.hidden").touch()
    wanted = {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin", "2_Dense/model.safetensors"}
    assert extra(source) == wanted | {"deep/er/x.pt", "own.py", "modules.json"}
    assert "4_Other/" in read_checkpoint(source).left_behind
    assert cli("convert", source, "-g", 2, "-o", "out").code == 0
    assert (source.parent / "out/2_Dense/model.safetensors").read_text() == "w"
    assert cli("convert", source.parent / "out", "-g", 1, "-o", "again").code == 0
    assert (source.parent / "again/2_Dense/model.safetensors").read_text() == "w"


@pytest.mark.parametrize(
    "path", ["..", "../other", "/etc", "a/../..", "a//b", "./x", ".git", "a/.hidden", "a\\b", "a/"]
)
def test_modules_elsewhere_are_refused(tiny: Callable[..., Path], path: str) -> None:
    source = tiny()
    (source / "modules.json").write_text(modules("", path))
    with pytest.raises(CheckpointError, match="names the folder"):
        read_checkpoint(source)


@pytest.mark.parametrize("content", ["{}", "[1]", "[", "3", '[["path"]]'])
def test_modules_that_are_no_list(tiny: Callable[..., Path], content: str) -> None:
    source = tiny()
    (source / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        read_checkpoint(source)


def test_a_folder_of_modules_that_is_a_link(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny()
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key").touch()
    (source / "modules.json").write_text(modules("", "1_Pooling"))
    (source / "1_Pooling").symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match=r"1_Pooling leads to .*private, outside of"):
        read_checkpoint(source)


def test_speech_with_a_language_model(tiny: Callable[..., Path]) -> None:
    source = tiny()
    fill(source, alphabet_json="{}", **{"language_model__5gram.bin": "w", "language_model__attrs_json": "{}"})
    assert extra(source) == {"alphabet.json", "language_model/5gram.bin", "language_model/attrs.json"}


def test_folders_that_are_models_of_their_own_stay(tiny: Callable[..., Path]) -> None:
    source = tiny()
    fill(source, speech_tokenizer__config_json="{}", speech_tokenizer__preprocessor_config_json="{}")
    fill(source, my_processor__preprocessor_config_json="{}")
    assert extra(source) == {"my_processor/preprocessor_config.json"}
    assert read_checkpoint(source).left_behind == ("speech_tokenizer/",)


def test_huge_files_do_not_belong(tiny: Callable[..., Path]) -> None:
    source = tiny()
    with (source / "pytorch.model").open("wb") as file:
        file.truncate(101 << 20)
    assert extra(source) == set()
    assert read_checkpoint(source).left_behind == ("pytorch.model",)


@pytest.mark.parametrize("folder", ["", "assets", "tokenizer", "1_Pooling"])
def test_there_is_an_end_of_them(tiny: Callable[..., Path], folder: str) -> None:
    source = tiny()
    (source / "modules.json").write_text(modules("", "1_Pooling"))
    (source / folder).mkdir(exist_ok=True)
    for number in range(1200):
        (source / folder / f"license-{number}.png").touch()
    with pytest.raises(CheckpointError, match="at most 1,000"):
        read_checkpoint(source)


def test_ten_thousand_others_are_no_trouble(tiny: Callable[..., Path]) -> None:
    source = tiny()
    (source / "samples").mkdir()
    for number in range(3000):
        (source / f"step-{number}.out").touch()
        (source / f"samples/{number}.png").touch()
    left = read_checkpoint(source).left_behind
    assert len(left) == 3001
    assert "samples/" in left


def test_the_hub_gives_folders_of_modules_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mha2gqa.files.source import find_source

    repo = tmp_path / "repo"
    fill(repo, config_json="{}", modules_json=modules("", "1_Pooling", "2_Dense[x]"), other__config_json="{}")
    fill(repo, **{"1_Pooling__config_json": "{}", "2_Dense[x]__model.safetensors": "w", "model.safetensors": "w"})
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "home")
        server.add("org/embedder", repo)
        found = find_source("org/embedder").directory
        assert (found / "2_Dense[x]/model.safetensors").read_text() == "w"
        assert not (found / "other").exists()
        assert list(map(str, module_folders(found))) == ["1_Pooling", "2_Dense[x]"]
        server.connect(monkeypatch, tmp_path / "home", offline=True)
        assert find_source("org/embedder").directory == found
