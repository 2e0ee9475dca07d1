"""CKNNA: centred kernel nearest-neighbour alignment of two representations of the same n samples.

Huh et al., "The Platonic Representation Hypothesis", 2024; VIRAL Section 4.1 and Figure 2(d).

With K = A A^T and L = B B^T over rows of unit length, m_K the mask of the k largest entries of each row of K (the
diagonal excluded, *not* symmetrised), m_L likewise and m = m_K * m_L,

    CKNNA = H(m*K, m*L) / (sqrt(H(m_K*K, m_K*K) H(m_L*L, m_L*L)) + 1e-6)
    H(P, Q) = [sum(P * Q^T) + sum(P) sum(Q) / ((n-1)(n-2)) - 2 sum(P Q) / (n-2)] / (n (n-3))

H is the unbiased HSIC of zero-diagonal matrices (the biased one scores independent data 0.7 at n = 576 and k = 10).
The masked matrices are asymmetric: the transpose matters, and so, a little, does the order of x and y.  The sum over
the matrix product is colsum(P) . rowsum(Q), which leaves O(n^2 d) time, spent on the kernels, and O(n^2) memory.

The level of chance grows with k / n: independent data score 0.02 at n = 576 and k = 10, but 0.2 at n = 16 and k = 10.
The estimator of a variance under the root can be negative when n is small; a negative product has no root.
"""

import torch

EPSILON = 1e-6  # of the published denominator


def cknna(x, y, k: int = 10) -> torch.Tensor:
    """CKNNA of two representations of the same n samples, or of many pairs, such as the layers of one image.

    Args:
        x, y: (..., n, d_x) and (..., n, d_y), torch or numpy, computed in float32, or in float64 where the input is
            float64.  The leading dimensions broadcast.  Rows are L2-normalised here.
        k: neighbours per sample, 2 <= k < n.

    Returns a float64 tensor of the leading shape, on the device of `x`; NaN where the formula is undefined.  ValueError
    for shapes that do not fit, n < 4, k out of range, or features that are not finite.
    """
    x = _rows(x, "x")
    y = _rows(y, "y").to(x.device)
    n = x.shape[-2]
    if y.shape[-2] != n:
        raise ValueError(f"x has {n} samples and y has {y.shape[-2]}: both must describe the same samples")
    if n < 4 or not 2 <= k < n:
        raise ValueError(f"k = {k} neighbours out of n = {n} samples: choose 2 <= k < n, of at least 4 samples")

    kernel_x, nearest_x, mask_x = _neighbours(x, k)
    kernel_y, nearest_y, mask_y = _neighbours(y, k)
    self_x = _hsic(kernel_x, kernel_x, mask_x, nearest_x)
    self_y = _hsic(kernel_y, kernel_y, mask_y, nearest_y)
    leading = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    kernel_x, kernel_y, mask, nearest = (
        part.expand(*leading, *part.shape[-2:]) for part in (kernel_x, kernel_y, mask_x & mask_y, nearest_x)
    )
    return _hsic(kernel_x, kernel_y, mask, nearest) / ((self_x * self_y).sqrt() + EPSILON)


def clamp_outliers(x: torch.Tensor, q: float = 0.95) -> torch.Tensor:
    """Clamp each (n, d) of `x` (..., n, d) to plus or minus its own q-quantile of |x|, 0 < q <= 1, as the reference.

    A few channels with massive activations would otherwise decide every neighbour.  The quantile is the order statistic
    at index floor(q * size) over all n * d entries; q = 1 leaves `x` as it is.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q = {q} is not a quantile in (0, 1]")
    if q == 1:
        return x
    size = x.shape[-1] * x.shape[-2]
    bound = x.flatten(-2).abs().kthvalue(int(q * size) + 1, dim=-1).values[..., None, None]
    return x.clamp(-bound, bound)


def _rows(x, name: str) -> torch.Tensor:
    """(..., n, d) rows of unit length, in float32 at least."""
    x = torch.as_tensor(x).detach()
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected (..., n, d)")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not x.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite: check the features before measuring them")
    return torch.nn.functional.normalize(x, dim=-1)


def _neighbours(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kernel x x^T (..., n, n), the k nearest others of each row (..., n, k), and their mask (..., n, n)."""
    kernel = x @ x.mT
    kernel.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)  # never among the nearest, so never read
    nearest = kernel.topk(k, dim=-1).indices
    return kernel, nearest, torch.zeros_like(kernel, dtype=torch.bool).scatter_(-1, nearest, True)


def _hsic(kernel_p: torch.Tensor, kernel_q: torch.Tensor, mask: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
    """(...) unbiased HSIC of P = mask * kernel_p and Q = mask * kernel_q, in float64.

    `nearest` (..., n, k) are columns that hold all of the mask: only these n k entries are read.  Q^T needs no kernel
    entry of its own, since kernels are symmetric and only the mask is not.
    """
    n = mask.shape[-1]
    inside = mask.gather(-1, nearest)
    mutual = inside & mask.mT.gather(-1, nearest)
    p, q = (kernel.gather(-1, nearest).double() for kernel in (kernel_p, kernel_q))
    cross = (p * q * mutual).sum((-2, -1))
    p, q = p * inside, q * inside
    columns = p.new_zeros(mask.shape[:-1]).scatter_add_(-1, nearest.flatten(-2), p.flatten(-2))
    rows = q.sum(-1)
    product = (columns * rows).sum(-1)
    return (cross + columns.sum(-1) * rows.sum(-1) / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))
