"""LookupFFN: a feed-forward block as a learnt hash and a sum of table rows."""

from __future__ import annotations

from typing import Any, Self

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import InputError
from lutcc.lookup_options import check_lookup_options
from lutcc.nn.constants import RoundedParameters
from lutcc.nn.distillation import Distillation, Progress, calibration_rows, distill, seeded
from lutcc.nn.feed_forward import feed_forward_function, feed_forward_weights
from lutcc.nn.memory import LookupMemory, require_memory
from lutcc.nn.projections import check_features, make_projection
from lutcc.nn.table_values import initial_std, quantize_tables


class LookupFFN(RoundedParameters):
    """A feed-forward block without matrix products: hash, look up, add.

    ``z = x R`` by a cheap projection R; z is cut into num_tables stretches z_k of code_length
    numbers, whose signs are the code c_k of a row of table T_k, and whose sizes give its weight
    s_k: ``y = sum_k s_k(z_k) T_k[c_k] + bias``. Use it as the block that it replaces,
    ``x + ffn(norm(x))``: its input should have mean 0 and variance 1, as a layer norm makes it.

    Parameters
    ----------
    d_in, d_out
        Columns of the input and of the output.
    num_tables
        h, the number of tables: the quality grows with it, and so do time and memory.
    code_length
        tau, 1 to 16: a table has 2**tau rows. At equal h * tau, longer codes are better and read
        less, but take more memory.
    projection
        "bh1" to "bh8" or "dense", or one of figure 4's others; see
        :func:`lutcc.nn.make_projection`.
    block_size
        Of the projection's block-diagonal matrices.
    table_dtype
        What inference reads: "float32", "bfloat16", or "int8" with one float32 scale per output
        column (then the scores are rounded to 8 bits per row, too). Training is always in floats.
    variant
        "gelu": s = P prod sigmoid(2 |z|) with P = sum |z|, as in the paper's experiments;
        "softmax": without P (equation 7); "constant": s = 1 (YOSO; the hash gets no gradient).
    neighbors
        Rows looked up per table, 1 to tau + 1: that of the code, then those one bit away, the least
        certain bits first.
    bias
        Whether to add a learnt bias.
    projection_dtype
        "float32", or "bfloat16": inference multiplies by the projection in bfloat16.
    score_dtype
        "float32", or "bfloat16" with bfloat16 tables: inference rounds the scores to bfloat16.
    device
        Where to create the parameters.

    Attributes
    ----------
    projection
        The layer that computes z.
    tables
        Parameter (num_tables, 2**code_length, d_out).
    bias
        Parameter (d_out,), or None.
    distillation
        What :meth:`from_ffn` found, or None.

    Raises
    ------
    InputError
        If an option or the input does not fit, or the tables would not fit in memory.

    Notes
    -----
    Source: LookupFFN, equations 7 and 8 and section 4; row vectors, bit t of a code is set iff
    z_k[t] > 0. Gradients reach R through the scores only; a table row gets one from the inputs that
    look it up. z starts with variance 1 and the output with a standard deviation of 0.2 (see
    docs/lookup-ffn.md). Tables, or blocks, of another type than float32 are rounded in eval mode;
    ``state_dict`` holds floats only.

    Examples
    --------
    >>> ffn = LookupFFN(512, 512, num_tables=16, code_length=4)
    >>> ffn(torch.randn(2, 7, 512)).shape
    torch.Size([2, 7, 512])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_tables: int,
        code_length: int,
        projection: str = "bh4",
        block_size: int = 64,
        table_dtype: str = "float32",
        variant: str = "gelu",
        neighbors: int = 1,
        bias: bool = True,
        projection_dtype: str = "float32",
        *,
        score_dtype: str = "float32",
        device: Any = None,
    ) -> None:
        super().__init__()
        check_lookup_options(
            d_in=d_in,
            d_out=d_out,
            num_tables=num_tables,
            code_length=code_length,
            projection=projection,
            block_size=block_size,
            table_dtype=table_dtype,
            variant=variant,
            neighbors=neighbors,
            projection_dtype=projection_dtype,
            score_dtype=score_dtype,
        )
        self.d_in, self.d_out = d_in, d_out
        self.num_tables, self.code_length = num_tables, code_length
        self.table_dtype, self.variant, self.neighbors = table_dtype, variant, neighbors
        self.score_dtype = score_dtype
        self.distillation: Distillation | None = None
        shape = (num_tables, 2**code_length, d_out)
        require_memory(shape, device, code_length)
        self.projection = make_projection(
            projection, d_in, num_tables * code_length, block_size, projection_dtype, device
        )
        self.tables = torch.nn.Parameter(torch.empty(shape, device=device))
        self.bias = torch.nn.Parameter(torch.empty(d_out, device=device)) if bias else None
        if table_dtype == "int8":
            self.declare_rounded("tables_int8", "column_scale")
        elif table_dtype == "bfloat16":
            self.declare_rounded("tables_bfloat16")
        self.reset_parameters(projection=False)

    @torch.no_grad()
    def reset_parameters(self, *, projection: bool = True) -> None:
        """Draw all parameters anew."""
        if projection:
            self.projection.reset_parameters()
        torch.nn.init.normal_(
            self.tables,
            std=initial_std(self.num_tables, self.code_length, self.variant, self.neighbors),
        )
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def round_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return the tables as inference reads them, and int8's scale per column."""
        tables = self.tables.detach().float()
        if self.table_dtype == "bfloat16":
            return (tables.to(torch.bfloat16),)
        return quantize_tables(tables)

    def hash(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes int32 and scores, both (..., num_tables * neighbors), of ``x``."""
        check_features(x, self.d_in, "LookupFFN")
        z = self.projection(x)
        return torch.ops.lutcc.sign_hash(z, self.code_length, self.variant, self.neighbors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., d_out) for ``x`` (..., d_in)."""
        codes, scores = self.hash(x)
        if self.training or not self._rounded:
            y = torch.ops.lutcc.weighted_gather(codes, scores, self.tables)
        elif self.table_dtype == "bfloat16":
            y = torch.ops.lutcc.weighted_gather(codes, scores, *self.rounded(), self.score_dtype)
        else:
            tables, scale = self.rounded()
            y = torch.ops.lutcc.weighted_gather(codes, scores, tables) * scale
        y = y if self.bias is None else y + self.bias
        # int8 sums and scales are float32 whatever the input is
        return y.to(scores.dtype) if y.dtype is not scores.dtype else y

    @classmethod
    def from_ffn(
        cls,
        ffn: Any,
        calibration: Any,
        num_tables: int,
        code_length: int,
        projection: str = "bh4",
        *,
        steps: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 0.1,
        synthetic: float = 0.5,
        max_rows: int = 65536,
        seed: int = 0,
        progress: Progress | None = None,
        device: Any = None,
        **options: Any,
    ) -> Self:
        """Distil an existing feed-forward block into look-ups.

        The hash starts at random; the tables are fitted to it by ridge regression; then Adam trains
        both on the block's outputs, with a learning rate that falls to zero. A tenth of the rows is
        held out and decides which state is kept. Regression and Adam hold some five times the
        tables in memory.

        Parameters
        ----------
        ffn
            The block: a module or function that maps rows to rows, or (W1, b1, activation, W2, b2)
            with W1 (t, d_in), W2 (d_out, t) and an activation such as "gelu". It is not changed.
        calibration
            (..., d_in) tensor or array: what the block receives in its model.
        num_tables, code_length, projection, options
            As in :class:`LookupFFN`.
        steps, batch_size, learning_rate
            Of Adam; 0 steps leave the regression's tables. The rate is relative to the root mean
            square of the tables.
        synthetic
            Share of each batch that is made up by shifting rows a little, 0 to 1: it helps where
            the calibration rows are few.
        max_rows
            Use at most this many rows, drawn with ``seed``.
        seed
            Of everything random: the same seed gives the same layer.
        progress
            Called as ``progress(step, steps, held-out error)`` some twenty times.
        device
            Where to work; that of the block's weights if None.

        Returns
        -------
        The layer in eval mode; its attribute ``distillation`` is a
        :class:`lutcc.nn.distillation.Distillation`, which states the error before and after.

        Raises
        ------
        InputError
            If the block, the calibration or an option does not fit.

        Examples
        --------
        >>> nn = torch.nn
        >>> ffn = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> layer = LookupFFN.from_ffn(ffn, torch.randn(900, 8), 16, 4, steps=100)
        >>> layer.distillation.relative_error < layer.distillation.mean_error
        True
        """
        check_lookup_options(
            "LookupFFN.from_ffn",
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            synthetic=synthetic,
            max_rows=max_rows,
        )
        function, home = feed_forward_function(ffn, "LookupFFN.from_ffn")
        device = torch.device(device or home or "cpu")
        rows = calibration_rows(calibration, max_rows, seed, device)
        with torch.no_grad():
            d_out = function(rows[:1]).shape[-1]
        with seeded(seed, device):
            layer = cls(
                rows.shape[1], d_out, num_tables, code_length, projection, device=device, **options
            )
            layer.distillation = distill(
                layer,
                function,
                rows,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                synthetic=synthetic,
                seed=seed,
                progress=progress,
            )
        return layer

    @classmethod
    def yoso(
        cls,
        ffn: Any,
        num_tables: int,
        code_length: int,
        seed: int = 0,
        projection: str = "dense",
        **options: Any,
    ) -> Self:
        """Approximate a feed-forward block by YOSO: a random hash, tables of sums of its rows.

        ``T_k[j] = 1/h sum over i with f_k(W1[i]) = j of W2[:, i]`` and ``y = sum_k T_k[f_k(x)]``.
        The mean over random hashes is ``sum_i (1 - angle(x, W1[i]) / pi)**tau W2[:, i]``: the
        activation's place is taken by that of the angle, so this stands for the block only as far
        as the two are alike.

        Parameters
        ----------
        ffn
            Two Linear layers, the first without bias (directions have none), or
            (W1, None, activation, W2, b2). The activation is not used.
        num_tables, code_length, projection, options
            As in :class:`LookupFFN`; the variant is "constant". The projection is not trained.
        seed
            Of the hash.

        Raises
        ------
        InputError
            If the block is not of that form or an option does not fit.

        Notes
        -----
        Source: LookupFFN, equation 3; Zeng et al., YOSO (2021).

        Examples
        --------
        >>> nn = torch.nn
        >>> ffn = nn.Sequential(nn.Linear(8, 32, bias=False), nn.GELU(), nn.Linear(32, 8))
        >>> LookupFFN.yoso(ffn, num_tables=64, code_length=4)(torch.randn(5, 8)).shape
        torch.Size([5, 8])
        """
        w1, b1, _, w2, b2 = feed_forward_weights(ffn, "LookupFFN.yoso")
        if b1 is not None and bool((b1 != 0).any()):
            raise InputError(
                "the first layer has a bias, but YOSO hashes directions, which have none",
                where="LookupFFN.yoso",
                fix="use a first layer without bias, or pass (W1, None, activation, W2, b2)",
            )
        device, directions = w1.device, w1.detach().float()
        with seeded(seed, device):
            layer = cls(
                w1.shape[1],
                w2.shape[0],
                num_tables,
                code_length,
                projection,
                variant="constant",
                device=device,
                **{"bias": b2 is not None, **options},
            )
        layer.projection.requires_grad_(False)
        with torch.no_grad():
            if layer.bias is not None and b2 is not None:
                layer.bias.copy_(b2)
            codes = layer.hash(directions)[0].long()
            rows = w2.detach().float().t() / num_tables
            layer.tables.zero_()
            for k, table in enumerate(layer.tables):
                table.index_add_(0, codes[:, k], rows)
        return layer.eval()

    @property
    def flops(self) -> int:
        """FLOPs per row as the paper counts them: the projection, and two per number looked up."""
        return self.projection.flops + 2 * self.num_tables * self.neighbors * self.d_out

    @property
    def table_bytes(self) -> int:
        """Size of the tables that inference reads, in bytes."""
        size = {"float32": 4, "bfloat16": 2, "int8": 1}[self.table_dtype]
        return self.tables.numel() * size

    @property
    def memory(self) -> LookupMemory:
        """What the layer takes in memory, in bytes."""
        parameters = sum(p.numel() * p.element_size() for p in self.parameters())
        size = self.table_bytes // self.tables.numel()
        return LookupMemory(
            tables=self.table_bytes,
            projection=self.projection.parameter_bytes,
            training=4 * parameters,
            read_per_row=self.num_tables * self.neighbors * self.d_out * size,
        )

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        text = f"d_in={self.d_in}, d_out={self.d_out}, num_tables={self.num_tables}"
        text += f", code_length={self.code_length}, table_dtype={self.table_dtype!r}"
        text += f", variant={self.variant!r}, neighbors={self.neighbors}"
        text += f", bias={self.bias is not None}"
        if self.score_dtype != "float32":
            text += f", score_dtype={self.score_dtype!r}"
        return text + f", {self.table_bytes:,} bytes of tables"
