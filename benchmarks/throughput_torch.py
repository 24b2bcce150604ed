"""One turn of `benchmarks.throughput` in PyTorch: NETWORK N MODEL; prints draws per second.

The published CERTIFY algorithm (Cohen et al., 2019): batches of noisy copies of one image, argmax,
counts per class. The network is the same, with weights of its own: what they are costs nothing.
"""

import os
import sys
import time

import numpy as np
import torch
from torch import nn

BATCH = 1000


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Identity()
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.shortcut(x) + self.norms[1](self.second(y)))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def resnet20() -> nn.Module:
    blocks = [
        Block(16 * 2 ** max(stage - (i == 0), 0), 16 * 2**stage, 1 + (i == 0 and stage > 0))
        for stage in range(3)
        for i in range(3)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def count(model: nn.Module, image: torch.Tensor, sigma: float, n: int) -> np.ndarray:
    counts = np.zeros(10, int)
    with torch.no_grad():
        for done in range(0, n, BATCH):
            batch = image.repeat((min(BATCH, n - done), 1, 1, 1))
            noise = torch.randn_like(batch) * sigma
            predictions = model(batch + noise).argmax(1)
            counts += np.bincount(predictions.numpy(), minlength=10)
    return counts


def main(network: str, n: int) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    model = {"lenet": lenet, "resnet20": resnet20}[network]().eval()
    shape = (1, 28, 28) if network == "lenet" else (3, 32, 32)
    image = torch.rand((1, *shape))
    count(model, image, 0.5, BATCH)
    started = time.perf_counter()
    count(model, image, 0.5, n)
    print(n / (time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
