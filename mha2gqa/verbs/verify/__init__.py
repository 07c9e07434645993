"""What a converted checkpoint is worth beside its original.

`pair` finds the two; `file_level`, `load_level` and `outputs_level` verify them, `judge` gives the verdict,
`results` is the report. `tensors`, `config_keys` and `companions` compare files; `loading`, `running` and
`behaviour` run models; `metrics`, `layers` and `continuations` measure outputs. `perplexity` is the loss of
one checkpoint on the reference's held-out text.
"""
