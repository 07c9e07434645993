"""What text tells of a model, and a conversion improved by it, with the original as the measure.

statistics    sums of what each layer's projections read, in one pass of the original; what `aligned` wants to know
prior         the same, guessed from the weights alone
merge         the heads of a layer merged, by one of these or neither
student       the converted model beside the original, sharing every weight that stays
replay        both models run block by block; what goes into an attention module, and what comes out
activations   keeps that, in memory or on disk
refit         a layer's output projection in closed form
refit_values  values and output projection, each in turn in closed form
descend       the one training loop, and a layer trained alone by it
joint         all layers trained together, by the same loop
refine        the order of these, first layer to last, each step kept only where it helps
"""
