"""Calibration: what text tells about a model, and a conversion improved layer by layer with it.

`statistics` sums what `aligned` wants to know of each layer's inputs. `student` is the converted model beside
the original; `replay` runs both block by block and captures what goes into an attention module and comes out
of it; `refit` (outputs), `refit_values` (values and outputs, by the sums of `bilinear`) and `distil` improve one module
on that; `refine` is their order, first layer to last. `activations` keeps what was captured, in memory or on disk.
"""
