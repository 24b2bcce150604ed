"""One turn of `benchmarks.training` in PyTorch: torch NETWORK BATCH COPIES STEPS.

MACER's step (Zhai et al., ICLR 2020, equation 17) written plainly; prints seconds a step.
"""

import math
import os
import sys
import time

import torch
from throughput_torch import lenet, resnet20

SHAPES = {"lenet": (1, 28, 28), "resnet20": (3, 32, 32)}
WARM = 3
SIGMA, WEIGHT, GAMMA, BETA = 0.5, 4.0, 8.0, 16.0


def macer(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of logits `[B, k, K]` and labels `[B]`."""
    log_p = torch.logsumexp(torch.log_softmax(logits, 2), 1) - math.log(logits.shape[1])
    classification = torch.nn.functional.nll_loss(log_p, labels)
    mean = torch.softmax(BETA * logits, 2).mean(1)
    best, classes = mean.topk(2)
    first, second = best.unbind(1)
    normal = torch.distributions.Normal(0.0, 1.0)
    right = classes[:, 0] == labels
    with torch.no_grad():
        gap = normal.icdf(first) - normal.icdf(second)
        active = right & torch.isfinite(gap) & (gap < GAMMA)
    gap = normal.icdf(first[active]) - normal.icdf(second[active])
    return classification + WEIGHT * SIGMA / 2 * (GAMMA - gap).sum() / len(labels)


def main(network: str, size: int, copies: int, steps: int) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    model = {"lenet": lenet, "resnet20": resnet20}[network]().train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=5e-4)
    images = torch.rand((size * steps, *SHAPES[network]))
    labels = torch.randint(10, (size * steps,))

    def step(number: int) -> None:
        rows = slice(number * size, (number + 1) * size)
        noisy = images[rows].repeat_interleave(copies, 0)
        noisy = noisy + SIGMA * torch.randn_like(noisy)
        loss = macer(model(noisy).reshape(size, copies, 10), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(WARM):
        step(0)
    started = time.perf_counter()
    for number in range(steps):
        step(number)
    print((time.perf_counter() - started) / steps)


if __name__ == "__main__":
    main(sys.argv[2], *(int(number) for number in sys.argv[3:]))
