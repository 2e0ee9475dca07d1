"""CKNNA: centred kernel nearest-neighbour alignment of two representations of the same n samples.

Huh et al., "The Platonic Representation Hypothesis", 2024; VIRAL Section 4.1 and Figure 2(d).

With K = A A^T and L = B B^T over rows of unit length, m_K the mask of the k largest entries of each row of K (the
diagonal excluded, *not* symmetrised), m_L likewise and m = m_K * m_L,

    CKNNA = H(m*K, m*L) / (sqrt(H(m_K*K, m_K*K) H(m_L*L, m_L*L)) + 1e-6)
    H(P, Q) = [sum(P * Q^T) + sum(P) sum(Q) / ((n-1)(n-2)) - 2 sum(P Q) / (n-2)] / (n (n-3))

H is the unbiased HSIC of zero-diagonal matrices.  The masked matrices are asymmetric: the transpose matters, and so, a
little, does the order of x and y.  The sum over the matrix product is colsum(P) . rowsum(Q), which leaves O(n^2 d)
time, spent on the kernels, and O(n^2) memory.  The biased HSIC is not offered: it scores independent data 0.7 where the
unbiased one scores 0.02 (n = 576, k = 10).

The level of chance grows with k / n: independent data score 0.02 at n = 576 and k = 10, but 0.2 at n = 16 and k = 10.

The estimator of a variance under the root can be negative when n is small.  A negative product
has no root: the value is NaN, and callers count it.
"""

import numpy as np
import torch

EPSILON = 1e-6  # of the published denominator


def cknna(x, y, k: int = 10) -> float:
    """CKNNA of two representations of the same n samples.

    Args:
        x, y: (n, d_x) and (n, d_y), torch or numpy, computed on the device of `x` in float32, or in float64 where the
            input is float64.  Rows are L2-normalised here.
        k: neighbours per sample, 2 <= k < n.

    Returns:
        A float; NaN where the published formula is undefined.

    Raises:
        ValueError: shapes that do not fit, n < 4, k out of range, or features that are not finite.
    """
    if np.ndim(x) != 2 or np.ndim(y) != 2:
        raise ValueError(f"cknna needs two (n, d) matrices, got {tuple(np.shape(x))} and {tuple(np.shape(y))}")
    return float(cknna_batch(x, y, k)[0])


def cknna_batch(x, y, k: int = 10):
    """CKNNA of many pairs of representations, for instance of a batch of images or of the layers of one image.

    Args:
        x, y: (..., n, d_x) and (..., n, d_y), torch or numpy; the leading dimensions broadcast, so that one target
            (n, d_y) serves every layer in (layers, n, d_x).
        k: neighbours per sample, 2 <= k < n.

    Returns:
        (values, undefined): float64 values of the leading shape, in the kind and on the device of `x`, NaN where the
        formula is undefined, and the number of these.

    Raises:
        ValueError: as `cknna`.
    """
    is_numpy = not isinstance(x, torch.Tensor)
    x = _rows(x, "x")
    y = _rows(y, "y").to(x.device)
    n = x.shape[-2]
    if y.shape[-2] != n:
        raise ValueError(f"x has {n} samples and y has {y.shape[-2]}: both must describe the same samples")
    if n < 4:
        raise ValueError(f"the unbiased HSIC needs at least 4 samples, got {n}")
    if not 2 <= k < n:
        raise ValueError(f"k = {k} neighbours out of n = {n} samples: choose 2 <= k < n")

    kernel_x, nearest_x, mask_x = _neighbours(x, k)
    kernel_y, nearest_y, mask_y = _neighbours(y, k)
    self_x = _hsic(kernel_x, kernel_x, mask_x, nearest_x)
    self_y = _hsic(kernel_y, kernel_y, mask_y, nearest_y)
    leading = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    kernel_x, kernel_y, mask, nearest = (
        part.expand(*leading, *part.shape[-2:]) for part in (kernel_x, kernel_y, mask_x & mask_y, nearest_x)
    )
    values = _hsic(kernel_x, kernel_y, mask, nearest) / ((self_x * self_y).sqrt() + EPSILON)
    undefined = int(values.isnan().sum())
    return (values.cpu().numpy() if is_numpy else values), undefined


def clamp_outliers(x, q: float = 0.95):
    """Clamp a representation to plus or minus the q-quantile of |x|, as the reference does before CKNNA.

    It matters where a few channels carry massive activations, which would otherwise decide every neighbour.  The
    quantile is the order statistic at index floor(q * size) over all n * d entries of one representation.

    Args:
        x: (..., n, d), torch or numpy; each (n, d) is clamped by its own quantile.
        q: in (0, 1]; 1 leaves `x` as it is.

    Returns:
        The clamped `x`, of its kind, shape, device and dtype.

    Raises:
        ValueError: `q` out of range.
    """
    if not 0 < q <= 1:
        raise ValueError(f"q = {q} is not a quantile in (0, 1]")
    if q == 1:
        return x
    if not isinstance(x, torch.Tensor):
        return clamp_outliers(torch.as_tensor(x), q).numpy()
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
