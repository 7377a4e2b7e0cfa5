"""The bilateral solver with dense matrices and a direct solution."""

import numpy as np


def solve(image, mask, sigma_spatial, sigma_luma, sigma_chroma, lam, confidence):
    """Soft mask ``(H, W)``."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    yuv = image.astype(np.float64) @ matrix.T + [0, 128, 128]
    vertices: dict[tuple, int] = {}
    vertex = np.empty(mask.shape, int)
    for y, x in np.ndindex(mask.shape):
        sizes = (sigma_spatial, sigma_spatial, sigma_luma, sigma_chroma, sigma_chroma)
        cell = tuple(int(value // size) for value, size in zip((y, x, *yuv[y, x]), sizes, strict=True))
        vertex[y, x] = vertices.setdefault(cell, len(vertices))
    cells = np.array(list(vertices))
    distance = np.abs(cells[:, None] - cells[None]).sum(-1)
    blur = 10.0 * np.eye(len(cells)) + (distance == 1)
    splat = np.eye(len(cells))[:, vertex.ravel()]
    mass = splat.sum(1)
    n = np.ones(len(cells))
    for _ in range(10):
        n = np.sqrt(n * mass / (blur @ n))
    smooth = np.diag(n * (blur @ n)) - n[:, None] * blur * n
    solution = np.linalg.solve(lam * smooth + confidence * np.diag(mass), confidence * (splat @ mask.ravel()))
    return solution[vertex]
