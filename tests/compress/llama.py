"""A small model with the names and shapes of Llama, and its checkpoint in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

HIDDEN, WIDE, VOCABULARY = 64, 96, 120


class Part(nn.Module):
    """A holder of linear layers without bias."""

    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (rows, columns) in sizes.items():
            self.add_module(name, nn.Linear(columns, rows, bias=False))


class Layer(nn.Module):
    """A layer whose attention looks at its own position only."""

    def __init__(self) -> None:
        super().__init__()
        square = (HIDDEN, HIDDEN)
        self.self_attn = Part(q_proj=square, k_proj=square, v_proj=square, o_proj=square)
        self.mlp = Part(gate_proj=(WIDE, HIDDEN), up_proj=(WIDE, HIDDEN), down_proj=(HIDDEN, WIDE))
        self.input_layernorm = nn.RMSNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a: Any = self.self_attn
        m: Any = self.mlp
        y = self.input_layernorm(x)
        x = x + a.o_proj(a.v_proj(y) * torch.tanh(a.q_proj(y) * a.k_proj(y)))
        return x + m.down_proj(nn.functional.silu(m.gate_proj(x)) * m.up_proj(x))


class Llama(nn.Module):
    """Embedding, layers, head; the head may be the embedding."""

    def __init__(self, layers: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.model.norm = nn.RMSNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        x = model.embed_tokens(ids)
        for layer in model.layers:
            x = layer(x)
        return self.lm_head(model.norm(x))


def write_checkpoint(folder: Path, model: nn.Module, *, dtype: torch.dtype) -> None:
    """Write two shards, their index, and a config."""
    state = {name: t.detach().to(dtype).clone() for name, t in model.state_dict().items()}
    names = list(state)
    half = len(names) // 2
    files = {"model-00001-of-00002.safetensors": names[:half],
             "model-00002-of-00002.safetensors": names[half:]}  # fmt: skip
    folder.mkdir(exist_ok=True)
    for file, inside in files.items():
        save_file({name: state[name] for name in inside}, folder / file)
    where = {name: file for file, inside in files.items() for name in inside}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
