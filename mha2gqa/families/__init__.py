"""Families turn tensors into heads: how each model type keeps attention in its files.

`blueprint` asks transformers what it expects, `counts` finds and rewrites the numbers of KV heads, `table` says what
is special about a family, `layouts` how heads lie in a tensor, `changes` which tensors depend on a count, `cache` what
the KV cache holds, `anatomy` where the parameters are. For whole layers, `modules` finds them, `attention` turns
their tensors into heads and back, `freedom` and `observed` say what may be done to the heads.
"""
