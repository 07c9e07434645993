"""How fast two models run, and how fast they could.

`subjects.py` finds and loads the two; `grid.py` and `limits.py` know what is measured, the bytes that a step must move
and what fits into memory; `engines.py` and `transformers_engine.py` run a prompt or a few steps; `run.py` lets both
models take turns; `outcome.py` is what comes of it. Nothing here judges what the models say.
"""
