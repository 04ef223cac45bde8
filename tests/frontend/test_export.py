"""Tracing: batch dimension, fallbacks, and errors that name the layer and the fix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lutcc import ir
from lutcc.errors import FrontendError
from lutcc.frontend import import_torch


def _dims(imported):
    return [tuple(map(str, port.shape)) for port in (*imported.inputs, *imported.outputs)]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batch_is_symbolic_whatever_the_example(batch):
    imported = import_torch(nn.Linear(4, 3), torch.zeros(batch, 4))
    assert _dims(imported) == [("n", "4"), ("n", "3")]
    assert imported.notes == ()


def test_static_batch_on_request():
    imported = import_torch(nn.Linear(4, 3), torch.zeros(5, 4), dynamic_batch=False)
    assert _dims(imported) == [("5", "4"), ("5", "3")]


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x, y):
        return torch.relu(self.first(x) + self.second(y)), self.first(x)


def test_inputs_share_the_batch(assert_interpreted):
    imported = assert_interpreted(
        _Pair(), (torch.randn(3, 4), torch.randn(3, 5)), (torch.randn(1, 4), torch.randn(1, 5))
    )
    assert [str(p) for p in imported.inputs] == ["x: float32[n, 4]", "y: float32[n, 5]"]
    assert [p.name for p in imported.outputs] == ["output0", "output1"]


def test_keyword_inputs():
    imported = import_torch(_Pair(), {"x": torch.zeros(2, 4), "y": torch.zeros(2, 5)})
    assert _dims(imported)[:2] == [("n", "4"), ("n", "5")]


def test_exported_program_is_taken_as_it_is():
    n = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(nn.Linear(4, 3), (torch.zeros(8, 4),), dynamic_shapes=({0: n},))
    assert _dims(import_torch(program)) == [("n", "4"), ("n", "3")]
    assert import_torch(program.run_decompositions()).kind == "ir"


class _FixedBatch(nn.Module):
    def forward(self, x):
        return torch.relu(x.reshape(8, 4))


def test_specialising_model_falls_back_with_a_note():
    imported = import_torch(_FixedBatch(), torch.zeros(8, 4))
    assert _dims(imported) == [("8", "4"), ("8", "4")]
    assert "the batch size is fixed at 8" in imported.notes[0]
    assert "x.shape[0]" in imported.notes[0]


def test_weights_are_copied():
    model = nn.Linear(4, 3)
    imported = import_torch(model, torch.zeros(2, 4))
    assert imported.module is not None
    before = imported.module.constant("weight").copy()
    with torch.no_grad():
        model.weight.zero_()
    assert (imported.module.constant("weight") == before).all()
    assert not imported.module.constant("weight").flags.writeable


class _Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class _Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class _Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return x + self.count


class _Scalar(nn.Module):
    def forward(self, x):
        return x, 3


class _Longer(nn.Module):
    def forward(self, x):
        return torch.cat([x, x[:1]])


@pytest.mark.parametrize(
    ("model", "example", "place", "reason", "fix"),
    [
        (_Branch(), torch.zeros(2, 3), "test_export.py", "depends on the values", "torch.where"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
            torch.zeros(2, 3),
            "layer '1'",
            "from the batch",
            "eval()",
        ),
        (nn.Sequential(nn.Dropout(0.5)), torch.zeros(2, 3), "layer '0'", "training mode", "eval()"),
        (_Noise(), torch.zeros(2, 3), "op", "random", "input"),
        (_Counter().eval(), torch.zeros(2, 3), "'count'", "changes", "input"),
        (_Longer(), torch.zeros(2, 3), "'output'", "n + 1", "proportional"),
        (_Scalar(), torch.zeros(2, 3), "output 1", "not a tensor", "tensors only"),
        (
            nn.Linear(3, 2).double(),
            torch.zeros(2, 3).double(),
            "'weight'",
            "float64",
            "model.float()",
        ),
        (nn.Linear(3, 2).half(), torch.zeros(2, 3).half(), "'weight'", "float16", "model.float()"),
        (nn.Linear(3, 2), torch.zeros(2, 5), "Linear", "reduction dim", "example"),
        (nn.Linear(3, 2), None, "example_inputs", "none were given", "torch.zeros"),
        (nn.Linear(3, 2), "x", "example_inputs", "str", "tensor"),
        (lambda x: x, torch.zeros(2, 3), "import_torch", "function", "torch.nn.Module"),
    ],
)
def test_errors_name_place_reason_and_fix(model, example, place, reason, fix):
    with pytest.raises(FrontendError) as caught:
        import_torch(model, example)
    assert place in caught.value.where
    assert reason in caught.value.what
    assert fix in caught.value.fix


def test_failed_trace_prints_nothing(capfd):
    with pytest.raises(FrontendError):
        import_torch(_Branch(), torch.zeros(2, 3))
    assert capfd.readouterr() == ("", "")


def test_text_of_an_imported_module_round_trips():
    module = import_torch(_Pair(), (torch.zeros(2, 4), torch.zeros(2, 5))).module
    assert module is not None
    assert ir.parse(ir.to_text(module)) == module
