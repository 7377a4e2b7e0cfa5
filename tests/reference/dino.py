"""DINO and iBOT's losses, view by view and image by image, from the equations of the papers."""

import math

import numpy as np


def softmax(values: np.ndarray, temperature: float) -> np.ndarray:
    powers = [math.exp((value - max(values)) / temperature) for value in values]
    return np.array(powers) / sum(powers)


def cross_entropy(teacher: np.ndarray, student: np.ndarray, centre: np.ndarray, low: float, high: float) -> float:
    """``low`` is the teacher's temperature, ``high`` the student's."""
    targets, predicted = softmax(teacher - centre, low), softmax(student, high)
    return -sum(p * math.log(q) for p, q in zip(targets, predicted, strict=True))


def dino(student: np.ndarray, teacher: np.ndarray, centre: np.ndarray, low: float, high: float) -> float:
    """``student`` is ``(V, B, K)``, ``teacher`` ``(2, B, K)``; the same view is never compared with itself."""
    images, losses = student.shape[1], []
    for taught in range(2):
        for seen in range(len(student)):
            if seen != taught:
                losses += [
                    cross_entropy(teacher[taught, image], student[seen, image], centre, low, high)
                    for image in range(images)
                ]
    return sum(losses) / len(losses)


def ibot(student: np.ndarray, teacher: np.ndarray, masks: np.ndarray, centre: np.ndarray, low: float, high: float):
    """Outputs of all patches, ``(B, N, K)``, hidden ones in ``masks``, ``(B, N)``; the mean over views, with 0 for one
    without hidden patches."""
    losses = []
    for image, hidden in enumerate(masks):
        places = np.flatnonzero(hidden)
        each = [cross_entropy(teacher[image, n], student[image, n], centre, low, high) for n in places]
        losses.append(sum(each) / len(each) if each else 0.0)
    return sum(losses) / len(losses)


def head(features: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """``weights`` by the names of a state dictionary."""

    def gelu(x: float) -> float:
        return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))

    outputs = []
    layers = sorted({int(name.split(".")[1]) for name in weights if name.startswith("perceptron")})
    for feature in features:
        x = feature
        for layer in layers:
            x = weights[f"perceptron.{layer}.weight"] @ x + weights[f"perceptron.{layer}.bias"]
            if layer != layers[-1]:
                x = np.array([gelu(value) for value in x])
        x = x / math.sqrt(sum(x**2))
        rows = weights["directions"]
        lengths = weights.get("lengths", np.ones(len(rows)))
        outputs.append([length * (row @ x) / math.sqrt(row @ row) for row, length in zip(rows, lengths, strict=True)])
    return np.array(outputs)
