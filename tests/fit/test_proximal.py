"""The proximal gradient of JLCM against its definition, and the way that it points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lutcc.fit.proximal import assigned_codewords, proximal_direction, soft_assign, softness

#: The paper's example (section 3.4): a weight of 0.12 that stands at -0.09.
CODEBOOK = torch.tensor([-1.23, -0.09, 0.17, 0.96])
LOGITS = torch.tensor([0.0, 1.0, 0.0, 0.0])


def random_case(shared: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(8, 5, 7, dtype=torch.float64)
    tables = torch.randn(8, 5, 1 if shared else 7, dtype=torch.float64)
    tables[3] = tables[2]  # equal codewords: sign(0) is 1
    return logits, tables, torch.randn(5, 7, dtype=torch.float64)


@pytest.mark.parametrize("unit", [1.0, 0.3])
def test_direction_is_equation_8(unit: float) -> None:
    logits, tables, _ = random_case(shared=True)
    D = proximal_direction(tables, logits.argmax(0), unit).numpy()
    C = np.broadcast_to(tables.numpy(), logits.shape)
    for place in np.ndindex(5, 7):
        a = int(logits.numpy()[(slice(None), *place)].argmax())
        for j in range(8):
            difference = C[a][place] - C[j][place]
            sign = 1.0 if difference >= 0 else -1.0
            expected = sign / (1 + abs(difference) / unit) - (1.0 if j == a else 0.0)
            assert D[j][place] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_is_equation_9_with_descending_sign(shared: bool) -> None:
    logits, tables, grad = random_case(shared)
    logits.requires_grad_()
    tables.requires_grad_()
    weights, shares = soft_assign(logits, tables, unit=0.5)
    weights.backward(grad)
    softmax = logits.detach().softmax(0)
    torch.testing.assert_close(shares, softmax)
    torch.testing.assert_close(weights, (softmax * tables.detach()).sum(0))
    direction = proximal_direction(tables.detach(), logits.detach().argmax(0), 0.5)
    torch.testing.assert_close(logits.grad, -grad * direction)
    expected = (softmax * grad).sum_to_size(tables.shape)
    torch.testing.assert_close(tables.grad, expected)


def test_gradient_of_shares_is_the_softmax_own() -> None:
    logits, tables, grad = random_case(shared=True)
    results = []
    for proximal in (True, False):
        leaf = logits.clone().requires_grad_()
        weights, shares = soft_assign(leaf, tables, proximal=proximal)
        (shares.pow(3).sum() + 0 * (weights * grad).sum()).backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1])


def test_plain_gradient_is_the_chain_rule() -> None:
    logits, tables, _ = random_case(shared=False)
    inputs = (logits.requires_grad_(), tables.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, c: soft_assign(x, c, proximal=False)[0], inputs)


@pytest.mark.parametrize("wanted", [0.12, -0.8])
def test_descent_moves_to_the_next_codeword_on_the_right_side(wanted: float) -> None:
    # equation 9 as printed has the other sign, and moves away from the weight
    def step(proximal: bool) -> torch.Tensor:
        logits = LOGITS.clone().requires_grad_()
        weights, _ = soft_assign(logits, CODEBOOK, proximal=proximal, unit=0.5)
        (CODEBOOK[1] - wanted + (weights - weights.detach())).square().backward()
        assert logits.grad is not None
        return -logits.grad

    moved = step(proximal=True)
    near, far = (2, 3) if wanted > CODEBOOK[1] else (0, None)
    assert moved.argmax() == near
    assert moved[1] == 0
    if far is not None:
        assert moved[near] > moved[far] > 0 > moved[0]
        # the chain rule prefers the far one, which is the paper's point
        assert step(proximal=False).argmax() == far
    else:
        assert moved[2] < 0
        assert moved[3] < 0


@pytest.mark.parametrize("beta", [2.0, 7.3])
def test_softness_is_the_regularisation_of_equation_6(beta: float) -> None:
    shares = torch.randn(4, 5, dtype=torch.float64).softmax(0).requires_grad_()
    expected = (1 - np.abs(2 * shares.detach().numpy() - 1) ** beta).sum()
    assert float(softness(shares.detach(), beta)) == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda s: softness(s, beta), (shares,))


def test_assigned_codewords_are_the_first_largest() -> None:
    logits = torch.randint(4, (8, 50)).float()
    np.testing.assert_array_equal(assigned_codewords(logits).numpy(), logits.numpy().argmax(0))
