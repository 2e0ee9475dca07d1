"""PCA maps of visual tokens: VIRAL Section 5.6 and Figure 5.

Three principal components of N tokens, each scaled robustly and squashed into a colour channel:

    u = (x - median) / (IQR + 1e-6);  colour = 0.5 (tanh u + 1)

Of each component the entry of largest magnitude is positive, so that the same tokens have the same colours everywhere.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA

from viral_core.measure.inputs import square_side


def pca_map(tokens) -> np.ndarray:
    """Colours (H, H, 3) in [0, 1] of one image's N = H * H tokens (N, D), from its own three components."""
    return pca_maps([tokens])[0]


def pca_maps(tokens: Sequence) -> list[np.ndarray]:
    """Colours (H, H, 3) of several sets of tokens (N, D), torch or numpy: a colour means the same in every map.

    One basis, one median and one IQR over all sets, which therefore need one space: layers of a model share a residual
    stream, and models trained from the same language model nearly do. ValueError for sets of different D, fewer than 4
    tokens or channels, or a number of tokens that is no square.
    """
    tokens = [torch.as_tensor(item).detach().double().cpu().numpy() for item in tokens]
    stacked = np.concatenate(tokens)
    if np.ptp(stacked, axis=0).any():
        basis = PCA(3, svd_solver="arpack", random_state=0).fit(stacked).components_  # (3, D)
        strongest = np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1)
        scores = (stacked - stacked.mean(0)) @ (basis * np.sign(strongest)).T
    else:  # every token is the same: no direction, grey
        scores = np.zeros((len(stacked), 3))
    low, median, high = np.percentile(scores, [25, 50, 75], axis=0)
    colours = 0.5 * (np.tanh((scores - median) / (high - low + 1e-6)) + 1)
    maps = np.split(colours, np.cumsum([len(item) for item in tokens])[:-1])
    return [one.reshape(square_side(len(one)), -1, 3) for one in maps]
