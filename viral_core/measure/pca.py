"""PCA maps of visual tokens: VIRAL Section 5.6 and Figure 5.

Three principal components of N tokens, each scaled robustly and squashed into a colour channel:

    u = (x - median) / (IQR + 1e-6);  colour = 0.5 (tanh u + 1)

The sign of a principal component is arbitrary.  Here the entry of largest magnitude of each component is positive, so
that the same tokens have the same colours everywhere.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA

from viral_core.measure.inputs import square_side


def pca_map(tokens, grid: tuple[int, int] | None = None) -> np.ndarray:
    """Colours of one image's tokens, from its own three components.

    Args:
        tokens: (N, D), torch or numpy, in reading order.
        grid: (H, W) with H * W = N; square by default.

    Returns:
        (H, W, 3) float64 in [0, 1].

    Raises:
        ValueError: fewer than 4 tokens or channels, values that are not finite, or a grid that does not fit.
    """
    return pca_maps([tokens], grid)[0]


def pca_maps(tokens: Sequence, grid: tuple[int, int] | None = None, shared: bool = False) -> list[np.ndarray]:
    """Colours of several sets of tokens, for instance of one image in several layers.

    Args:
        tokens: M sets, each (N, D).
        grid: as `pca_map`.
        shared: one basis, one median and one IQR over all sets, so that a colour means the same in every map.  The sets
            then need one D and one space: layers of a model share a residual stream, and models trained from the
            same language model nearly do; unrelated models do not.  By default every set has its own.

    Returns:
        M maps (H, W, 3).

    Raises:
        ValueError: as `pca_map`, or a shared basis over sets of different D.
    """
    tokens = [_matrix(item) for item in tokens]
    if shared and len({item.shape[1] for item in tokens}) > 1:
        raise ValueError(f"a shared basis needs tokens of one width, got {[item.shape[1] for item in tokens]}")
    groups = [tokens] if shared else [[item] for item in tokens]
    return [_fold(colours, grid) for group in groups for colours in _colours(group)]


def _colours(group: list[np.ndarray]) -> list[np.ndarray]:
    """(N, 3) colours of each set of a group that shares its basis and its scale."""
    stacked = np.concatenate(group)
    if np.ptp(stacked, axis=0).any():
        basis = PCA(3, svd_solver="arpack", random_state=0).fit(stacked).components_  # (3, D)
        strongest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1)
        scores = (stacked - stacked.mean(0)) @ (basis * np.sign(strongest)).T
    else:  # every token is the same: no direction, grey
        scores = np.zeros((len(stacked), 3))
    low, median, high = np.percentile(scores, [25, 50, 75], axis=0)
    colours = 0.5 * (np.tanh((scores - median) / (high - low + 1e-6)) + 1)
    return np.split(colours, np.cumsum([len(item) for item in group])[:-1])


def _matrix(tokens) -> np.ndarray:
    if isinstance(tokens, torch.Tensor):
        tokens = tokens.detach().double().cpu().numpy()
    tokens = np.asarray(tokens, dtype=np.float64)
    if tokens.ndim != 2 or min(tokens.shape) < 4:
        raise ValueError(f"tokens have shape {tokens.shape}: three components need (N, D) with N and D at least 4")
    if not np.isfinite(tokens).all():
        raise ValueError("the tokens hold values that are not finite: check the features before drawing them")
    return tokens


def _fold(colours: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    height, width = grid or (square_side(len(colours)),) * 2
    if height * width != len(colours):
        raise ValueError(f"a grid of {height} x {width} does not hold {len(colours)} tokens")
    return colours.reshape(height, width, 3)
