import numpy as np
import pytest
import torch

from figureground.segmenters.losses import PrototypeQueue, contrastive_loss, prototypes_of, saliency_loss
from tests.conftest import golden


@pytest.mark.parametrize("path", golden("maskcontrast_loss.npz"))
def test_losses_and_queue_are_those_of_the_published_code(path) -> None:
    file = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(path).items()}
    queue = PrototypeQueue(16, 32, torch.Generator())
    queue.prototypes.copy_(file["queue"].T)
    keys = prototypes_of(file["key_embedding"], file["key_mask"])
    loss = contrastive_loss(
        file["query_embedding"], file["query_mask"], keys, queue.prototypes, float(file["temperature"])
    )
    assert float(loss) == pytest.approx(float(file["contrastive_loss"]), abs=1e-5)
    saliency = saliency_loss(file["saliency_logits"], file["query_mask"])
    assert float(saliency) == pytest.approx(float(file["saliency_loss"]), abs=1e-5)
    queue.add(keys)
    torch.testing.assert_close(queue.prototypes.T, file["new_queue"], atol=1e-5, rtol=0)
