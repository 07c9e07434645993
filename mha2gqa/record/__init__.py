"""What was done to a checkpoint: the outcome, the record and the card that keep it, and the pair that it joins.

`conversion` are the facts, from the plan to every page, and what a run has to say; `record` keeps them in
`mha2gqa.json`, `card` words them for the Hub, `carry` writes a planned checkpoint with both, `commands` writes
what was asked for as a command, and `pair` finds a converted checkpoint and its original again.
"""
