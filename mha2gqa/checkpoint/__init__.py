"""Checkpoints as bytes: where they come from, what is in them, how one is written safely.

`source` finds the directory, `reader` its tensors (names, shapes, byte ranges), `pickles` the same
for `.bin` files, `pieces` says what an output tensor is made of, `streams` moves bytes, `writer`
makes the output directory, `record` and `card` describe it.
"""
