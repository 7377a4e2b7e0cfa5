"""Exemplar-FreeSOLO's contrastive loss, formula by formula."""

import math

import numpy as np


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right) / (math.sqrt(left @ left) * math.sqrt(right @ right))


def contrast(
    embeddings: np.ndarray, pool: np.ndarray, alpha: float, beta: float, tau: float
) -> tuple[float, list[float]]:
    """The loss, and its terms: one for each embedding that has a positive."""
    terms = []
    for embedding in embeddings:
        similarities = [cosine(embedding, exemplar) for exemplar in pool]
        positives = [similarity for similarity in similarities if similarity > alpha]
        negatives = [similarity for similarity in similarities if similarity < beta]
        if not positives:
            continue
        neg = sum(math.exp(similarity / tau) for similarity in negatives) / len(negatives) if negatives else 0.0
        logarithms = []
        for similarity in positives:
            pos = math.exp(similarity / tau)
            logarithms.append(-math.log(pos / (pos + neg)))
        terms.append(sum(logarithms) / len(logarithms))
    return sum(terms), terms
