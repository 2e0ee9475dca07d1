"""Patch permutation: does a model notice that its image was shuffled?  VIRAL Section 5.5, Table 3, Figure 7.

Qi et al. (2025): the order of the visual features z is permuted before the projector, while the positions in the
sequence stay as they are.  Every model that is compared sees the same permutation of a sample.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from viral_core.tap import base_llava


def patch_order(seed: int, sample: str | int, n: int) -> np.ndarray:
    """(n,) order of the n visual features of a sample: position i gets feature order[i]."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8])).permutation(n)


class PatchPermutation:
    """Permute the visual features of a model before its projector, for as long as the context is open.

    Whoever runs the batches says `set_samples(ids)` before each forward pass or `generate` call, one id per row of the
    projector's input (per image; per tile where a model cuts its images into tiles).
    """

    def __init__(self, model, seed: int):
        self.projector = base_llava(model).model.multi_modal_projector
        self.seed = seed
        self.samples: list = []

    def set_samples(self, ids: Sequence[str | int]) -> None:
        """Name the samples of the next batch."""
        self.samples = list(ids)

    def __enter__(self):
        self._handle = self.projector.register_forward_pre_hook(self._permute, prepend=True)
        return self

    def __exit__(self, *exception):
        self._handle.remove()

    def _permute(self, module, args):
        (features,) = args
        if len(self.samples) != len(features):
            named = f"{len(features)} images reach the projector and {len(self.samples)} sample ids"
            raise ValueError(f"{named}: call set_samples before each batch")
        orders = np.stack([patch_order(self.seed, sample, features.shape[1]) for sample in self.samples])
        index = torch.from_numpy(orders).to(features.device)[..., None]
        return features.take_along_dim(index, dim=1)
