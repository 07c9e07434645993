"""Checkpoints as bytes: where they come from, what is in them, how one is written safely.

`source` finds the directory (`hub` downloads it), `reader` lists its tensors as byte ranges, `pickles`
the same for `.bin` files, `pieces` says what an output tensor is made of, `pool` merges heads, `streams`
moves bytes, `writer` makes the files, `staging` the directory, `finish` all of that in order.
"""
