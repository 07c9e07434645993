"""What a converted checkpoint is worth beside its original.

`run` goes from one level to the next: `file_level` compares bytes (`tensors`), `load_level` runs both models
(`behaviour`), `outputs_level` and `embeddings_level` measure what they give for the same tokens (`metrics`), and
`benchmarks` scores them. `judge` gives the verdict, and `remedy` says what to do about it. `levels` and `outcome` are
the report; `words`, `page` (with its plots in `figures`) and `card` show it.
"""
