"""Alignment objectives: mean over the tokens of an image, then over images, in float32.

`image_ids` (T,) names the image of every token; tokens of one image are adjacent, and images may differ in their number
of tokens. No gradient reaches the target. Without any token both losses are 0 and still part of the graph of `pred`.
ValueError where shapes differ. The names are `specs.OBJECTIVES`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(pred: Tensor, target: Tensor, image_ids: Tensor) -> Tensor:
    """Eq. 4 and 6: the mean of -cos(pred_i, target_i) over each image's tokens, averaged over images.

    `pred` (T, d) are projected hidden states, `target` (T, d) teacher features, `image_ids` (T,) the image of each
    token, on the CPU or the device of `pred`. A float32 scalar in [-1, 1].
    """
    _check(pred, target, image_ids)
    image_ids = image_ids.to(pred.device, non_blocking=True)
    similarity = F.cosine_similarity(pred.float(), target.detach().float(), dim=-1)
    first = torch.ones_like(image_ids, dtype=torch.bool)
    first[1:] = image_ids[1:] != image_ids[:-1]
    image = first.cumsum(0) - 1
    tokens = torch.zeros_like(image).index_add_(0, image, torch.ones_like(image))
    weight = 1 / (tokens[image] * first.sum())
    return -(similarity * weight.to(similarity)).sum()


def relation(pred: Tensor, target: Tensor, image_ids: Tensor) -> Tensor:
    """Table 5: squared error between the two matrices of cosine similarities among an image's N tokens.

    Args and shapes as `cosine`; the error is averaged over the N x N entries, then over images: a float32 scalar, at
    least 0. `image_ids` on the CPU spare a device synchronisation.
    """
    _check(pred, target, image_ids)
    sizes = torch.unique_consecutive(image_ids, return_counts=True)[1].tolist()
    with torch.autocast(pred.device.type, enabled=False):
        p = F.normalize(pred.float(), dim=-1)
        t = F.normalize(target.detach().float(), dim=-1)
        errors = [F.mse_loss(a @ a.T, b @ b.T) for a, b in zip(p.split(sizes), t.split(sizes), strict=True)]
        return torch.stack(errors).mean() if errors else p.sum()


def _check(pred: Tensor, target: Tensor, image_ids: Tensor) -> None:
    if pred.shape != target.shape or image_ids.shape != pred.shape[:1]:
        raise ValueError(
            f"alignment target {tuple(target.shape)} does not match the {tuple(pred.shape)} projected visual tokens of "
            f"images {tuple(image_ids.shape)}: resample the teacher to the student's grid, and make the head as wide "
            "as its features"
        )
