import torch

from figureground.refine.class_crf import class_crf
from figureground.refine.dense_crf import DenseCRFConfig, dense_crf_masks

CONFIG = DenseCRFConfig(iterations=5, gaussian_sxy=2, gaussian_compat=2, bilateral_sxy=8, bilateral_compat=3)


def test_two_classes_are_the_crf_of_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (14, 17, 3), generator=generator, dtype=torch.uint8)
    mask = torch.rand(14, 17, generator=generator) < 0.4
    high = torch.tensor(1.0).sigmoid()
    # CutLER's unaries: the 0/1 mask as logits; of two labels the difference counts.
    foreground = torch.where(mask, high, 1 - high)
    found = class_crf(image, torch.stack([1 - foreground, foreground]), CONFIG)
    torch.testing.assert_close(found[1], dense_crf_masks(image, mask[None], CONFIG)[0], atol=1e-4, rtol=1e-4)


def test_classes_follow_the_edges() -> None:
    image = torch.zeros(12, 18, 3, dtype=torch.uint8)
    for band, value in enumerate((20, 120, 230)):
        image[:, 6 * band : 6 * band + 6] = value
    # Drawn one column too far to the right, and sure of nothing.
    numbers = torch.arange(18).sub(1).clamp(min=0).div(6, rounding_mode="floor").expand(12, 18)
    given = torch.full((3, 12, 18), 0.25).scatter(0, numbers[None], 0.5)
    found = class_crf(image, given, CONFIG)
    assert found.argmax(0)[0].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    torch.testing.assert_close(found.sum(0), torch.ones(12, 18))
    torch.testing.assert_close(class_crf(image, given, CONFIG.replace(iterations=0)), given)
