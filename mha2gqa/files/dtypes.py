"""The dtypes of `pieces.ITEMSIZES` as torch has them; apart, because what moves bytes alone does without torch."""

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""By their names in a safetensors header."""
