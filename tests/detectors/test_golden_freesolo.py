"""FreeSOLO's losses against what its published code returned."""

import numpy as np
import pytest
import torch

from figureground.detectors.solo_losses import (
    average_projection_loss,
    colour_affinity,
    max_projection_loss,
    pairwise_loss,
)
from figureground.ops.nms import matrix_nms
from figureground.saliency.colour import lab_from_rgb
from tests.conftest import golden


@pytest.mark.parametrize("path", golden("freesolo_losses.npz"))
def test_freesolo(path) -> None:
    file = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    logits, targets = file["mask_logits"], file["targets"].float()
    for function, name in (
        (max_projection_loss, "loss_max_projection"),
        (average_projection_loss, "loss_average_projection"),
    ):
        assert float(function(logits.sigmoid(), targets).mean()) == pytest.approx(float(file[name]), abs=1e-4)

    affinity = colour_affinity(file["lab"])
    torch.testing.assert_close(affinity, file["color_similarity"], atol=1e-4, rtol=0)
    total, count = pairwise_loss(logits, affinity >= 0.3, file["boxes"])
    assert float(total / count) == pytest.approx(float(file["loss_pairwise"]), abs=1e-4)

    # The matrix of sRGB has other last digits there.
    lab = lab_from_rgb(file["image"].permute(2, 0, 1)[None] / 255)[0]
    torch.testing.assert_close(lab, file["lab"], atol=0.01, rtol=0)
    torch.testing.assert_close(colour_affinity(lab), file["color_similarity"], atol=2e-3, rtol=0)

    lowered = matrix_nms(file["targets"], file["nms_scores"])
    torch.testing.assert_close(lowered, file["nms_result"], atol=1e-4, rtol=0)
