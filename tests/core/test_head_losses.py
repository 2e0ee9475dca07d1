"""The alignment losses against loops, and the head against its formula."""

import pytest
import reference_losses
import torch

from viral_core import losses
from viral_core.head import AlignmentHead

NAMES = ("cosine", "relation")  # the paper's
SIZES = [4, 1, 7]


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    ids = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
    return torch.randn(12, 5, requires_grad=True), torch.randn(12, 5), ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_losses_match_float64_loops(name, dtype, tokens):
    """In float32 inside, whatever the type of the model and of the autocast around."""
    pred, target, ids = tokens
    pred, target = pred.to(dtype), target.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = getattr(losses, name)(pred, target, ids)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(getattr(reference_losses, name)(pred, target, SIZES), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_target(name, tokens):
    pred, target, ids = tokens
    target.requires_grad_()
    getattr(losses, name)(pred, target, ids).backward()
    assert target.grad is None
    assert pred.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_tokens_zero_and_in_the_graph(name):
    head = AlignmentHead(6, 5, hidden=8)
    pred = head(torch.zeros(0, 6))
    value = getattr(losses, name)(pred, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert value.item() == 0
    value.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["features", "tokens", "images"])
def test_shapes_that_would_broadcast_are_refused(name, wrong, tokens):
    pred, target, ids = tokens
    target = {"features": target[:, :1], "tokens": target[:1], "images": target}[wrong]
    with pytest.raises(ValueError, match=r"does not match the \(12, 5\) projected visual tokens"):
        getattr(losses, name)(pred, target, ids[:1] if wrong == "images" else ids)


def test_head_is_three_layers_with_silu_and_the_released_init():
    torch.manual_seed(0)
    head = AlignmentHead(64, 48)
    x = torch.randn(3, 64)
    silu = lambda y: y / (1 + (-y).exp())  # noqa: E731
    weights = [p.detach() for p in head.parameters()]
    expected = silu(silu(x @ weights[0].T) @ weights[2].T) @ weights[4].T
    torch.testing.assert_close(head(x), expected)
    assert [w.shape for w in weights[::2]] == [(2048, 64), (2048, 2048), (48, 2048)]
    assert all(abs(float(w.std()) - 0.02) < 1e-3 for w in weights[::2])
    assert all(not b.any() for b in weights[1::2])
