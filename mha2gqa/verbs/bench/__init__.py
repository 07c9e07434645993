"""How fast two models run, and how fast they could.

`subjects.py` finds and loads the two; `limits.py` knows the bytes that a step must move and what fits into memory;
`transformers_engine.py`, `encoder_decoder_engine.py`, `vllm_engine.py` and `llama_cpp_engine.py` run a prompt or a few
steps, of what `engine.py` calls a batch; `measure.py` lets both models take turns; `results.py` is what comes of it.
Nothing here judges what the models say.
"""
