"""Linear probes: what a linear map reads out of the feature of each patch."""

import numpy as np
import torch
from torch import Tensor, nn

from .pool import Pool


def linear_probe(x: Tensor, y: Tensor, n_train: int, weight_decay: float = 1e-5) -> Tensor:
    """Multinomial logistic regression on the first `n_train` rows of x (n, d), labels y (n,); predictions for the rest."""
    mean, std = x[:n_train].mean(0), x[:n_train].std(0) + 1e-6
    x = (x - mean) / std
    model = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[:n_train]), y[:n_train]) + weight_decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return model(x[n_train:]).argmax(1)


def probe(features: Tensor, pool: Pool, train: float = 0.75) -> dict[str, float]:
    """Accuracies of linear probes of patch features (n, 16, d) on scenes that the probes have not seen.

    `category`: of 25 classes (24 and empty), over the patches that show an object.  `occupied`: object or not.
    `facing`: left or right (chance 0.5), over the patches whose object has a front; one map for all categories.
    `position`: which of the 16 cells.
    """
    n, cells, d = features.shape
    split = int(n * train)
    x = features.detach().float()
    category = torch.from_numpy(np.asarray(pool.categories, np.int64))
    facing = torch.from_numpy(np.asarray(pool.facings, np.int64))
    shown = category[split:].flatten() > 0
    named = linear_probe(x.flatten(0, 1), category.flatten(), split * cells)
    front = facing > 0
    aimed = linear_probe(x[front], facing[front] - 1, int(front[:split].sum()))
    place = torch.arange(cells).repeat(n)
    placed = linear_probe(x.flatten(0, 1), place, split * cells)

    def accuracy(predicted: Tensor, true: Tensor) -> float:
        return round(float((predicted == true).float().mean()), 4)

    return {
        "category": accuracy(named[shown], category[split:].flatten()[shown]),
        "occupied": accuracy(named > 0, shown),
        "facing": accuracy(aimed, (facing[split:][front[split:]] - 1)),
        "position": accuracy(placed, place[split * cells :]),
    }
