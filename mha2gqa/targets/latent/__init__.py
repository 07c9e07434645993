"""Multi-head latent attention (MLA) as a target: one cached latent for all heads, and one rotary key that they share.

    form      what a layer becomes, and what a model's layers have in common
    costs     what errors of keys and of values cost the output of a layer
    planes    which rotary planes a shared key should hold, over all layers
    rope      speeds of the shared key's planes: free ones, and those that every engine knows
    start     where a fit begins
    fit       one layer's heads and statistics become its latent form
    widths    how a cache may be divided between latent and rotary key
    sources   which models can be written so, and how each differs from Llama
    linear    a norm that is kept so small that it does nothing
    config    the host's config.json
    tensors   the host's tensors

The host is transformers' own `deepseek_v3` with all its layers dense. Nothing here reads a file or runs a model.
"""
