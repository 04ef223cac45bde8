"""The language model against its formulas, and the blocks that can be put into it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lutcc.errors import InputError
from lutcc.nn import LookupFFN
from lutcc.train import DenseFFN, MaskedLM, Sizes
from lutcc.train.blocks import Block
from lutcc.train.compiled import Agreement, equal_codes, in_float64, log_perplexity, record_codes
from lutcc.train.masked_lm import local_bias
from lutcc.train.masking import Batch
from lutcc.train.report import Row, table

VOCABULARY, LENGTH, WIDTH, HEADS = 50, 7, 16, 4


def model(**options: bool) -> MaskedLM:
    torch.manual_seed(0)
    sizes = Sizes(VOCABULARY, LENGTH, WIDTH, layers=2, heads=HEADS, **options)
    return MaskedLM(sizes, lambda: DenseFFN(WIDTH, 64)).double().eval()


def ids(rows: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def by_hand(m: MaskedLM, tokens: torch.Tensor, pre_norm: bool, local: bool) -> torch.Tensor:
    """One sequence, one head and one query at a time."""
    p = dict(m.named_parameters())

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(f"{name}.{part}", x) for part in ("query", "key", "value"))
        mixed, size = torch.zeros_like(x), WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for i in range(LENGTH):
                scores = k[:, part] @ q[i, part] / size**0.5
                if local:
                    for j in range(LENGTH):
                        backwards = head % 2 == 0
                        scores[j] -= 2 / 4 ** (head // 2) * abs(i - j)
                        scores[j] -= 8 * (j >= i if backwards else j <= i)
                mixed[i, part] = scores.softmax(0) @ v[:, part]
        return linear(f"{name}.out", mixed)

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        return linear(f"{name}.outer", F.gelu(linear(f"{name}.inner", x)))

    logits = []
    for row in tokens:
        x = norm("norm", p["tokens.weight"][row] + p["positions"])
        for i in range(2):
            at = f"layers.{i}"
            if pre_norm:
                x = x + attention(f"{at}.attention", norm(f"{at}.attention_norm", x))
                x = x + block(f"{at}.ffn", norm(f"{at}.ffn_norm", x))
            else:
                x = norm(f"{at}.attention_norm", x + attention(f"{at}.attention", x))
                x = norm(f"{at}.ffn_norm", x + block(f"{at}.ffn", x))
        x = norm("last_norm", x) if pre_norm else x
        x = norm("head_norm", F.gelu(linear("head", x)))
        logits.append(x @ p["tokens.weight"].T + p["head_bias"])
    return torch.stack(logits)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_logits_are_those_of_the_formulas(pre_norm, local):
    m = model(pre_norm=pre_norm, local=local)
    with torch.no_grad():
        expected = by_hand(m, ids(), pre_norm, local)
        torch.testing.assert_close(m(ids()), expected, rtol=1e-9, atol=1e-10)


def test_the_loss_is_that_of_the_masked_tokens_only():
    m = model()
    places, labels = torch.tensor([1, 4, 9, 20]), torch.tensor([3, 7, 7, 49])
    with torch.no_grad():
        logits = m(ids())
        expected = -logits.flatten(0, 1).log_softmax(-1)[places, labels].mean()
        assert m.loss(ids(), places, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    batches = [
        Batch(ids()[:2], places[:3], labels[:3]),
        Batch(ids()[2:], places[3:] - 14, labels[3:]),
    ]
    assert log_perplexity(logits, batches) == pytest.approx(expected.item(), rel=1e-6)


def test_the_bias_lets_heads_look_to_one_side():
    bias = local_bias(4, 5)
    assert bias.shape == (4, 5, 5)
    assert bias[0, 3].tolist() == [-6, -4, -2, -8, -10]
    assert bias[1, 1].tolist() == [-10, -8, -2, -4, -6]
    assert bias[2, 2].tolist() == [-1, -0.5, -8, -8.5, -9]


def test_blocks_are_what_they_are_called():
    assert isinstance(Block("a", "dense").make(16), DenseFFN)
    lookup = Block("b", "lookup", 4, 3, 8).make(16)
    assert isinstance(lookup, LookupFFN)
    assert lookup.tables.shape == (4, 8, 16)
    x = torch.ones(2, 16)
    assert torch.equal(Block("c", "none").make(16)(x), torch.zeros(2, 16))
    assert Block("c", "none").mflop(16) == 0
    assert Block("b", "lookup", 4, 3, 8).label == "LookupFFN, h = 4"


@pytest.mark.parametrize(
    "wrong", [("a", "lokup"), ("a", "lookup"), ("a", "lookup", 4, 3), ("a", "dense", 4, 3, 8)]
)
def test_blocks_that_cannot_be(wrong):
    with pytest.raises(InputError, match="To mend it"):
        Block(*wrong)


def test_agreement_counts_tokens():
    a = torch.zeros(2, 3, 4)
    a[..., 0] = 1.0
    b = a.clone()
    b[0, 0, 1] += 2.0  # another prediction
    b[1, 1, 2] += 1e-4
    found = Agreement.of(a, b, tolerance=1e-3)
    assert (found.tokens, found.largest, found.median) == (6, 2.0, 0.0)
    assert found.within == found.same_prediction == pytest.approx(5 / 6)
    assert found.row("x") == "| x | 83.333% | 0.0e+00 | 2.0e+00 | 83.333% |"


def test_codes_are_recorded_and_compared():
    torch.manual_seed(0)
    sizes = Sizes(VOCABULARY, LENGTH, WIDTH, layers=2, heads=HEADS)
    m = MaskedLM(sizes, lambda: LookupFFN(WIDTH, WIDTH, 4, 3, block_size=8)).eval()
    with torch.inference_mode():
        with record_codes(m) as codes:
            m(ids())
        twin = in_float64(m)
        with record_codes(twin) as exact:
            twin(ids())
        m(ids())  # no longer recorded
    assert [c.shape for c in codes] == [(3 * LENGTH, 12)] * 2
    assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in m.parameters())
    assert equal_codes(codes, exact, 3) == 1.0
    flipped = [codes[0].clone(), codes[1]]
    flipped[0][0, 0] ^= True
    assert equal_codes(flipped, exact, 3) == pytest.approx(1 - 1 / (2 * 3 * LENGTH * 4))


def test_the_table_names_gains_and_losses():
    rows = [
        Row("dense", "dense FFN", None, None, 4.19, 10, 1.78),
        Row("a", "LookupFFN", 256, 8, 1.38, 20, 1.74),
        Row("b", "LookupFFN", 128, 8, 0.69, 15, 1.81),
    ]
    lines = table(rows, "dense").splitlines()
    assert lines[2].endswith("| 1.780 | - |")
    assert lines[3] == "| LookupFFN | 256 | 8 | 1.380 | 20 | 1.740 | -0.040 |"
    assert lines[4].endswith("| 1.810 | +0.030 |")
