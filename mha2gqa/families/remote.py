"""Model types whose code ships with their checkpoints: what can be done with one, where that is known.

Another type in the config would not help: the tensors have other names, or mean something else.
"""

_FALCON = "It is what transformers calls falcon: take a revision with that model type, or tiiuae/falcon"
_LLAMA = "Its weights can be written as a llama model, and that converted: "

REMEDIES = {
    "RefinedWeb": f"{_FALCON}-40b",
    "RefinedWebModel": f"{_FALCON}-7b",
    "qwen": f"{_LLAMA}LLaMA-Factory has scripts/convert_ckpt/llamafy_qwen.py for the first Qwen",
    "baichuan": f"{_LLAMA}LLaMA-Factory has scripts/convert_ckpt/llamafy_baichuan2.py for Baichuan 2",
    "internlm": f"{_LLAMA}it differs from it in the biases of its attention alone",
    "internlm2": f"{_LLAMA}InternLM has tools/convert2llama.py",
    "chatglm": "Take its authors' version for the type glm or glm4, whose names end in -hf",
}
"""Model type -> remedy."""

SHIPPED = "Take its authors' version for a type that transformers has, or convert it to one"
"""Remedy for any other type with code of its own."""
