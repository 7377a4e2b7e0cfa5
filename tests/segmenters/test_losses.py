"""The losses against slow ones; this file is also what two processes run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from figureground.segmenters.losses import PrototypeQueue, contrastive_loss, prototypes_of, saliency_loss
from tests.reference import maskcontrast as slow

TEMPERATURE = 0.3


def scene(empty_key: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = {
        "query": torch.randn(4, 6, 5, 7, generator=generator, dtype=torch.float64),
        "key": torch.randn(4, 6, 5, 7, generator=generator, dtype=torch.float64),
        "logits": torch.randn(4, 5, 7, generator=generator, dtype=torch.float64),
        "queue": torch.nn.functional.normalize(torch.randn(3, 6, generator=generator, dtype=torch.float64), dim=1),
        "masks": torch.rand(4, 5, 7, generator=generator) < torch.tensor([0.1, 0.3, 0.6, 0.9])[:, None, None],
        "key_masks": torch.rand(4, 5, 7, generator=generator) < 0.4,
    }
    if empty_key is not None:
        drawn["key_masks"][empty_key] = False
    return drawn


@pytest.mark.parametrize("empty_key", [None, 1])
def test_losses_are_the_slow_ones(empty_key: int | None) -> None:
    each = scene(empty_key)
    keys = prototypes_of(each["key"], each["key_masks"])
    expected = [slow.prototype(e, m) for e, m in zip(each["key"].numpy(), each["key_masks"].numpy(), strict=True)]
    torch.testing.assert_close(keys, torch.from_numpy(np.array(expected)))
    loss = contrastive_loss(each["query"], each["masks"], keys, each["queue"], TEMPERATURE)
    query, masks, queue = (each[name].numpy() for name in ("query", "masks", "queue"))
    assert float(loss) == pytest.approx(slow.contrastive(query, masks, keys.numpy(), queue, TEMPERATURE))
    saliency = saliency_loss(each["logits"], each["masks"])
    assert float(saliency) == pytest.approx(slow.saliency(each["logits"].numpy(), each["masks"].numpy()))


def test_a_batch_without_objects_teaches_nothing() -> None:
    each = scene()
    query = each["query"].requires_grad_()
    nothing = torch.zeros_like(each["masks"])
    keys = prototypes_of(each["key"], nothing)
    assert not keys.any()
    for masks, prototypes in ((nothing, prototypes_of(each["key"], each["key_masks"])), (each["masks"], keys)):
        loss = contrastive_loss(query, masks, prototypes, each["queue"])
        [gradient] = torch.autograd.grad(loss, query)
        assert float(loss.detach()) == 0
        assert not gradient.any()


def test_pixels_go_to_their_own_prototype() -> None:
    """Following the gradient brings the loss below that of chance and each object's pixels to its key."""
    each = scene()
    keys = prototypes_of(each["key"], each["key_masks"])
    query = each["query"].clone().requires_grad_()
    optimiser = torch.optim.SGD([query], lr=50)
    for _ in range(60):
        optimiser.zero_grad()
        contrastive_loss(query, each["masks"], keys, each["queue"], TEMPERATURE).backward()
        optimiser.step()
    nearest = (prototypes_of(query.detach(), each["masks"]) @ torch.cat([keys, each["queue"]]).T).argmax(1)
    assert nearest.tolist() == [0, 1, 2, 3]


class TestQueue:
    def test_the_oldest_go_first(self) -> None:
        queue = PrototypeQueue(4, 2, torch.Generator().manual_seed(0))
        torch.testing.assert_close(queue.prototypes.norm(dim=1), torch.ones(4))
        last = queue.prototypes[3].clone()
        keys = torch.arange(1.0, 15).view(7, 2)
        queue.add(torch.cat([keys[:1], torch.zeros(1, 2), keys[1:3]]))
        torch.testing.assert_close(queue.prototypes, torch.cat([keys[:3], last[None]]))
        queue.add(keys[3:5])
        torch.testing.assert_close(queue.prototypes, keys[[4, 1, 2, 3]])
        queue.add(keys[:0])
        queue.add(keys[[6, 5, 4, 3, 2, 1]])
        torch.testing.assert_close(queue.prototypes, keys[[3, 2, 1, 4]])

    def test_it_goes_on_where_it_was_saved(self) -> None:
        queues = [PrototypeQueue(4, 2, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        queues[0].add(torch.ones(3, 2))
        queues[1].load_state_dict(queues[0].state_dict())
        for queue in queues:
            queue.add(torch.full((2, 2), 0.5))
        torch.testing.assert_close(queues[0].prototypes, queues[1].prototypes)


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.segmenters.test_losses", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = learn(scene(empty_key=2))
    for name in ("loss", "queue"):
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, expected[name])
    torch.testing.assert_close(ranks[0]["queue"], ranks[1]["queue"])
    # The gradients of the mean over the processes, each the half of its own.
    gradient = torch.cat([rank["gradient"] for rank in ranks]) / 2
    torch.testing.assert_close(gradient, expected["gradient"])


def learn(each: dict[str, Tensor], **processes) -> dict[str, Tensor]:
    """Loss, gradient and the queue afterwards; the key of image 2 is empty."""
    query = each["query"].clone().requires_grad_()
    gather = processes.get("gather", lambda tensor: tensor)
    queue = PrototypeQueue(3, 6, torch.Generator().manual_seed(0)).double()
    keys = gather(prototypes_of(each["key"], each["key_masks"]))
    loss = contrastive_loss(query, each["masks"], keys, queue.prototypes, TEMPERATURE, **processes)
    loss = loss + saliency_loss(query.mean(1), each["masks"], gather)
    loss.backward()
    queue.add(keys)
    assert query.grad is not None
    return {"loss": loss.detach(), "gradient": query.grad, "queue": queue.prototypes}


if __name__ == "__main__":
    from figureground.training.distributed import gather, joined

    with joined("cpu") as me:
        half = {name: value if name == "queue" else value.chunk(2)[me.rank] for name, value in scene(2).items()}
        torch.save(learn(half, gather=gather, rank=me.rank), Path(sys.argv[1]) / f"{me.rank}.pt")
