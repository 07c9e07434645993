"""What `convert` writes for families whose class ships loads in a process that has no mha2gqa.

One process for all families: each is loaded with `trust_remote_code`, strictly, compared with what it answered here,
made to generate, saved by `save_pretrained` and loaded again, and loaded without its head (a pooler, which the source
has not, and Marian's computed table of positions are then made anew, as by transformers' own class).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mha2gqa import ConvertOptions, convert, shipped
from mha2gqa.model.load import load_model

from .subjects import SUBJECTS

_SCRIPT = """
import json, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mha2gqa":
            raise ImportError("mha2gqa is not installed here")

sys.meta_path.insert(0, Hidden())
try:
    import mha2gqa
except ImportError:
    pass
else:
    sys.exit("mha2gqa can be imported")
import torch, transformers
torch.set_num_threads(1)

def load(directory, auto):
    model, info = auto.from_pretrained(directory, trust_remote_code=True, output_loading_info=True)
    problems = [f"{kind} {keys}" for kind, keys in info.items() if keys]
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not problems, problems
    return model.eval()

answers = {}
for name, entry in json.loads(Path("subjects.json").read_text()).items():
    auto = getattr(transformers, entry["auto"])
    inputs = torch.load(f"{name}.pt", weights_only=True)
    model = load(name, auto)
    with torch.no_grad():
        answers[name] = [model(**inputs).logits]
        if entry["generates"]:
            plain = {key: tensor for key, tensor in inputs.items() if key in ("input_ids", "attention_mask")}
            written = model.generate(**plain, max_new_tokens=4, min_new_tokens=4, do_sample=False, **entry["start"])
            assert written.shape[1] >= 4, written.shape
    model.save_pretrained(f"{name}-again")
    with torch.no_grad():
        answers[name].append(load(f"{name}-again", auto)(**inputs).logits)
    _, info = transformers.AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert {key.split(".")[-2] for key in info["missing_keys"]} <= {"dense", "embed_positions"}, (name, info)
torch.save(answers, "answers.pt")
"""


@pytest.mark.slow
def test_every_family_loads_without_mha2gqa(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected, entries = {}, {}
    for subject in SUBJECTS:
        name = subject.model_type
        subject.native().save_pretrained(tmp_path / "source" / name)
        convert(ConvertOptions(model=str(tmp_path / "source" / name), groups=2, output=tmp_path / name))
        inputs = subject.forward_inputs()
        torch.save(inputs, tmp_path / f"{name}.pt")
        with torch.no_grad():
            expected[name] = load_model(tmp_path / name)(**inputs).logits
        entries[name] = {"auto": subject.auto, "generates": subject.generates and "input_ids" in inputs}
        entries[name]["start"] = {"decoder_start_token_id": 1} if subject.seq2seq else {}
    (tmp_path / "subjects.json").write_text(json.dumps(entries))
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-I", "-c", _SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answers = torch.load(tmp_path / "answers.pt", weights_only=True)
    for name, logits in expected.items():
        for answer in answers[name]:
            torch.testing.assert_close(answer, logits, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_every_class_is_in_the_auto_map() -> None:
    assert {one.model_type for one in SUBJECTS} == {*shipped.SOURCES}
    for model_type in shipped.MODULES:
        named = {name.rpartition(".")[2] for name in shipped.auto_map(model_type).values()}
        assert set(shipped.architectures(model_type).values()) <= named | {"T5GQAForConditionalGeneration"}


def test_the_files_need_nothing_but_torch_and_transformers() -> None:
    for model_type in shipped.MODULES:
        for text in shipped.files(model_type).values():
            lines = [
                line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
            ]
            assert set(lines) <= {"copy", "functools", "typing", "torch", "transformers"}
