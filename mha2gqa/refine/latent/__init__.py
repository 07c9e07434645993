"""Latent attention on text: what is known of a layer's inputs, and a fitted model improved layer by layer.

student      the host in memory, around the original's weights
statistics   inputs counted by the attention that each token receives
refit        values and outputs in closed form
choice       which division of a cache loses least on text kept aside
"""
