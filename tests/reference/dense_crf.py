"""Mean field of a fully connected CRF with explicit kernel matrices and two labels."""

import numpy as np


def marginals(mask, kernels, iterations):
    """Foreground probability ``(N,)`` from a bool mask ``(N,)`` and pairs of Potts weight and kernel ``(N, N)``."""
    logits = np.stack([~mask, mask], 1).astype(np.float64)
    unary = -np.log(_softmax(logits))
    q = _softmax(-unary)
    for _ in range(iterations):
        energy = unary.copy()
        for weight, kernel in kernels:
            norm = 1 / np.sqrt(kernel.sum(1))
            messages = (norm[:, None] * kernel * norm) @ q
            energy += weight * messages @ (1 - np.eye(2))
        q = _softmax(-energy)
    return q[:, 1]


def _softmax(logits):
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True)
