"""Linear probes: what a linear map reads out of the feature of each patch."""

import numpy as np
import torch
from torch import Tensor, nn

from .pool import Pool


def linear_probe(x: Tensor, y: Tensor, test: Tensor, weight_decay: float = 1e-5) -> Tensor:
    """Multinomial logistic regression on features x (n, d) with labels y (n,); what it calls `test` (m, d)."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / std
    model = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y) + weight_decay * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return model((test - mean) / std).argmax(1)


def probe(seen: tuple[Tensor, Pool], held_out: tuple[Tensor, Pool]) -> dict[str, float]:
    """Accuracies on `held_out` scenes of linear probes fitted to `seen` ones; features (n, 16, d), one pool for each.

    `category`: of 25 classes (24 and empty), over the patches that show an object.  `occupied`: object or not.
    `facing`: left or right (chance 0.5), over the patches whose object has a front, one map for all categories.
    `position`: which of the 16 cells.  Fitted to the patches with objects and as many empty ones.
    `patches`, `objects`, `fronts`: of how many held-out patches, in all, with an object and with one that has a front.
    """
    (x, category, facing, cell), (x_test, category_test, facing_test, cell_test) = (
        (
            features.detach().float().flatten(0, 1),
            torch.from_numpy(np.array(pool.categories, np.int64)).flatten(),
            torch.from_numpy(np.array(pool.facings, np.int64)).flatten(),
            torch.arange(features.shape[1]).repeat(len(features)),
        )
        for features, pool in (seen, held_out)
    )
    shown = category.nonzero().squeeze(1)
    empty = (category == 0).nonzero().squeeze(1)[:: max(1, (len(category) - len(shown)) // len(shown))]
    rows = torch.cat([shown, empty])
    named = linear_probe(x[rows], category[rows], x_test)
    placed = linear_probe(x[rows], cell[rows], x_test)
    front, front_test = facing > 0, facing_test > 0
    aimed = linear_probe(x[front], facing[front] - 1, x_test[front_test])

    def share(correct: Tensor) -> float:
        return round(float(correct.float().mean()), 4)

    return {
        "category": share((named == category_test)[category_test > 0]),
        "occupied": share((named > 0) == (category_test > 0)),
        "facing": share(aimed == facing_test[front_test] - 1),
        "position": share(placed == cell_test),
        "patches": len(cell_test),
        "objects": int((category_test > 0).sum()),
        "fronts": int(front_test.sum()),
    }
