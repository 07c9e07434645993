"""Uptraining: a converted model trained for a fraction of its pre-training, by transformers' Trainer on accelerate.

`recipe` (how many steps, TrainingArguments), `text` (what is read, as it lies on disk, and what differs between
decoders, `running_text`, and encoder-decoders, `pairs`), `blocks` (documents and blocks), `samples` (text that the
original writes), `parameters` (what trains), `held_out` (what it is worth), `trainer` (what is learned, in a loop that
is transformers'), `workspace` (what survives a kill), `result` (the finished checkpoint).
"""
