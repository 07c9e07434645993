"""Families turn tensors into heads: how each model type keeps attention in its files.

`table` has a row for each family: where its numbers of KV heads stand, what its tensors mean, what may be done to its
heads (`row` says what a row may say, `layouts` how heads lie in a tensor, `names` what classes call things whatever the
family). `blueprint` asks transformers what it expects, `counts` finds and rewrites the numbers of KV heads, `changes`
which tensors depend on one, `cache` what the KV cache holds. For whole layers, `modules` finds them, with
what their norms and rotary embedding leave free, and `attention` turns their tensors into heads and back.
"""
