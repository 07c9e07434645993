"""Latent attention on text: what is known of a layer's inputs, and a fitted model improved layer by layer.

    student      the host in memory, around the original's weights
    statistics   inputs counted by the attention that each token receives
    modules      what the attention module of the host holds, and a form of it that can be trained
    refit        values and outputs in closed form
    refiner      fit, refit and distil, layer after layer
    joint        all layers together
    choice       which division of a cache loses least on text kept aside

All of it runs the original, and most of it the host: a student in memory that shares the original's weights.
"""
