"""k-NN votes as its paper says, neighbour by neighbour."""

import math

import numpy as np
import pytest
import torch

from figureground.evaluation.knn import knn_accuracy


@pytest.mark.parametrize("k", [1, 5, 100])
def test_is_the_plain_loop(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    known, asked = torch.randn(30, 6, generator=generator), torch.randn(40, 6, generator=generator)
    labels, expected = (torch.randint(0, 4, (count,), generator=generator) for count in (30, 40))
    right = 0
    for query, answer in zip(asked.numpy(), expected.tolist(), strict=True):
        cosines = [float(one @ query / (np.linalg.norm(one) * np.linalg.norm(query))) for one in known.double().numpy()]
        nearest = sorted(range(30), key=lambda place: -cosines[place])[:k]
        votes = [0.0] * 4
        for place in nearest:
            votes[int(labels[place])] += math.exp(cosines[place] / 0.07)
        right += votes.index(max(votes)) == answer
    assert knn_accuracy(known, labels, asked, expected, k) == right / 40


def test_apart_is_told_and_noise_is_chance() -> None:
    centres = torch.eye(4)[torch.arange(4).repeat(50)]
    labels = torch.arange(4).repeat(50)
    generator = torch.Generator().manual_seed(0)
    near = centres + 0.1 * torch.randn(200, 4, generator=generator)
    assert knn_accuracy(near[:100], labels[:100], near[100:], labels[100:]) == 1
    noise = torch.randn(2000, 4, generator=generator)
    labels = labels.repeat(10)
    assert knn_accuracy(noise[:1000], labels[:1000], noise[1000:], labels[1000:]) == pytest.approx(0.25, abs=0.05)
