import math

import pytest
import torch

from viral_core.head import AlignmentHead
from viral_core.losses import OBJECTIVES, cosine, relation

SIZES = [4, 1, 7]


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    ids = torch.arange(3).repeat_interleave(torch.tensor(SIZES))
    return torch.randn(12, 5, requires_grad=True), torch.randn(12, 5), ids


def cosine_loop(pred, target):
    total, row = 0.0, 0
    for size in SIZES:
        image = 0.0
        for i in range(row, row + size):
            p, t = pred[i].tolist(), target[i].tolist()
            dot = sum(a * b for a, b in zip(p, t, strict=True))
            image -= dot / math.sqrt(sum(a * a for a in p)) / math.sqrt(sum(b * b for b in t))
        total, row = total + image / size, row + size
    return total / len(SIZES)


def relation_loop(pred, target):
    def similarity(x, i, j):
        a, b = x[i].double(), x[j].double()
        return float(a @ b / a.norm() / b.norm())

    total, row = 0.0, 0
    for size in SIZES:
        pairs = [(i, j) for i in range(row, row + size) for j in range(row, row + size)]
        total += sum((similarity(pred, i, j) - similarity(target, i, j)) ** 2 for i, j in pairs) / size**2
        row += size
    return total / len(SIZES)


@pytest.mark.parametrize(("loss", "loop"), [(cosine, cosine_loop), (relation, relation_loop)])
def test_losses_match_float64_loops(loss, loop, tokens):
    pred, target, ids = tokens
    value = loss(pred, target, ids).detach()
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(loop(pred.detach().double(), target.double()), abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_reaches_the_target(name, tokens):
    pred, target, ids = tokens
    target.requires_grad_()
    OBJECTIVES[name](pred, target, ids).backward()
    assert target.grad is None
    assert pred.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_float32_inside_bfloat16(name, tokens):
    pred, target, ids = tokens
    low, high = pred.detach().bfloat16(), target.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = OBJECTIVES[name](low, high, ids)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(OBJECTIVES[name](low.double(), high.double(), ids)), abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_tokens_zero_and_in_the_graph(name):
    head = AlignmentHead(6, 5, hidden=8)
    pred = head(torch.zeros(0, 6))
    value = OBJECTIVES[name](pred, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    assert value.item() == 0
    value.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_a_perfect_match():
    x = torch.randn(6, 4)
    ids = torch.tensor([0, 0, 0, 1, 1, 1])
    assert float(cosine(x, 3 * x, ids)) == pytest.approx(-1, abs=1e-6)
    assert float(relation(x, 3 * x, ids)) == pytest.approx(0, abs=1e-6)


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
