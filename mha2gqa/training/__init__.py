"""Uptraining: a converted model trained for a fraction of its pre-training, by transformers' Trainer on accelerate.

`lengths` (how many steps), `recipe` (TrainingArguments), `documents` and `blocks` (what is read), `samples` (text
that the original writes), `parameters` (what trains), `objective` (what is learned), `held_out` (what it is worth),
`trainer` (the loop, which is transformers'), `workspace` (what survives a kill), `result` (the finished checkpoint).
"""
