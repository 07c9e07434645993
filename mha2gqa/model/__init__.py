"""Models: what is known of one, and how it is loaded, run and held against another.

`kind` says what may be asked of a class, `load` loads (`devices`: where, and in which dtype), `feed` runs, `divergence`
says how far what two give is apart, `layers` reads and writes attention layers as a whole.
"""
