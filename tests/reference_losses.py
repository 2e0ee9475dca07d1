"""The alignment losses by loops over images and tokens, in float64: means over an image's tokens, then over images."""

from itertools import product
from statistics import fmean

from torch import Tensor


def similarity(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def images(pred: Tensor, target: Tensor, sizes: list[int]):
    """What is predicted of each image, and its target; `sizes` are their tokens."""
    return zip(pred.detach().double().split(sizes), target.detach().double().split(sizes), strict=True)


def cosine(pred: Tensor, target: Tensor, sizes: list[int]) -> float:
    """Eq. 4 and 6."""
    return fmean(-fmean(map(similarity, p, t)) for p, t in images(pred, target, sizes))


def relation(pred: Tensor, target: Tensor, sizes: list[int]) -> float:
    """Table 5: squared differences between the similarities of any two tokens."""
    return fmean(
        fmean((similarity(p[i], p[j]) - similarity(t[i], t[j])) ** 2 for i, j in product(range(len(p)), repeat=2))
        for p, t in images(pred, target, sizes)
    )
