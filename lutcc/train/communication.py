"""Data-parallel training that sends the gradients of the sampled columns only.

With ``topk_weights`` all workers sample the same columns of a weight, since they have the same
weights, and the gradients of all other columns are zero everywhere: there is nothing to send.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lutcc.errors import CommunicationError, InputError
from lutcc.train.packing import Part, check_length, gradient_view, judge, pack, unpack, write_check

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

# What may be wrong, and what to do.
_OTHER_PLANS = (
    "the workers want to send different numbers of columns",
    "change sample_ratio in the same step and to the same value everywhere, and let all workers be "
    "in the same mode (train or eval)",
)
_OTHER_COLUMNS = (
    "the workers did not sample the same columns",
    "see that all workers hold the same weights, which nothing but the optimizer changes, and "
    "compute them alike; else train without the hook",
)
_ELSEWHERE = (
    "a worker has gradients outside of the columns that were sampled",
    "set gradients to zero after each step, change neither weights nor sample_ratio between "
    "forward and the exchange, and use a sampled weight in its layer only; else train without the "
    "hook",
)


@runtime_checkable
class SampledLayer(Protocol):
    """A layer that knows which input features or channels alone get a gradient."""

    def sampled_inputs(self) -> Tensor | None:
        """Return positions of the weight's dimension 1, (k,) int64; None for all."""
        ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one worker gave to all-reduce operations.

    A ring sends 2 (W - 1) / W times as many over the network, for W workers, of either.

    Parameters
    ----------
    bytes
        What was sent: sampled columns, other gradients, and the checks.
    dense_bytes
        What it would have been with all gradients whole.
    """

    bytes: int = 0
    dense_bytes: int = 0

    @property
    def saved(self) -> float:
        """The part that was not sent."""
        return 1 - self.bytes / self.dense_bytes if self.dense_bytes else 0.0

    def plus(self, sent: int, dense: int) -> Traffic:
        """Return the sum with what another bucket took."""
        return Traffic(self.bytes + sent, self.dense_bytes + dense)


def register_sampled_hook(ddp_model: DistributedDataParallel) -> SampledCommunication:
    """Let a data-parallel model send the gradients of sampled columns only.

    All workers call this, right after the model was wrapped. Layers other than ``topk_weights``
    ones, and weights that another module shares, are sent whole, as without the hook.

    Parameters
    ----------
    ddp_model
        The wrapped model; gloo or NCCL.

    Returns
    -------
    SampledCommunication
        Counts the bytes.

    Raises
    ------
    InputError
        If the model is not wrapped.
    CommunicationError
        If it has a hook already; later, out of ``backward``: on all workers alike if they did not
        sample the same columns, and if a worker is lost.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations,
    sections 6 and 8.

    Examples
    --------
    >>> model = DistributedDataParallel(lutcc.convert(model, recipe))   # doctest: +SKIP
    >>> communication = register_sampled_hook(model)                    # doctest: +SKIP
    >>> communication.total.saved                                       # doctest: +SKIP
    0.48
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise InputError(
            f"the model is a {type(ddp_model).__name__}",
            where="register_sampled_hook",
            fix="wrap it first: torch.nn.parallel.DistributedDataParallel(model)",
        )
    communication = SampledCommunication(ddp_model)
    try:
        ddp_model.register_comm_hook(communication, _hook)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CommunicationError(
            f"the hook was refused: {error}",
            where="register_sampled_hook",
            fix="register one hook only, before the first backward",
        ) from error
    return communication


class SampledCommunication:
    """The state of the hook: which weights are sampled, what was agreed, what was sent.

    Parameters
    ----------
    ddp_model
        The wrapped model.

    Attributes
    ----------
    steps
        Backward passes that exchanged gradients.
    total, last
        What all steps sent, and the last one.
    """

    def __init__(self, ddp_model: DistributedDataParallel) -> None:
        self.group: dist.ProcessGroup = cast(Any, ddp_model).process_group
        self.rank, self.world = self.group.rank(), self.group.size()
        self.steps, self.total, self.last = 0, Traffic(), Traffic()
        self._names, self._layers = _sampled_weights(ddp_model.module)
        self._agreed: dict[nn.Parameter, int] = {}  # sampled weight -> columns that are sent of it
        self._chosen: dict[nn.Parameter, Tensor] = {}
        self._junk = self._broken = self._watched = False
        self._error: CommunicationError | None = None
        self._futures: list[Future[Any]] = []
        self._late: list[tuple[Tensor, torch.cuda.Event, str]] = []

    def finish(self) -> None:
        """Check the last step on a GPU, where each step checks the one before it.

        Raises
        ------
        CommunicationError
            If workers did not sample the same columns.
        """
        self._judge_late()
        self._raise()

    # -- one step ------------------------------------------------------------------------------

    def exchange(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the exchange of one bucket, and return what will be its mean over the workers."""
        buffer = bucket.buffer()
        changed = self._begin() if bucket.index() == 0 else False
        if self._broken:
            return _done(buffer if buffer.is_sparse else buffer.fill_(torch.nan))
        where = f"rank {self.rank} of {self.world}, bucket {bucket.index()}"
        if buffer.is_sparse:
            return self._reduce(buffer.div_(self.world), [], 0, buffer, where)
        if changed and not self._agree(bucket, where):
            return _done(buffer.fill_(torch.nan))
        parts = self._parts(bucket, self._agreed)
        names = [self._names[p] for p in bucket.parameters() if p in self._agreed]
        where += f" ({', '.join(names)})" if names else ""
        columns = [part.columns for part in parts if part.columns is not None]
        checked = bucket.index() == 0 or bool(columns)
        length = check_length(buffer.dtype, self.world) if checked else 0
        flat, elsewhere = pack(parts, length, self.world)
        if checked:
            write_check(
                flat[-length:], self.rank, columns, elsewhere=elsewhere, other_plan=self._junk
            )
        return self._reduce(flat, parts, length, buffer, where)

    def _begin(self) -> bool:
        """Select the columns of all weights, and return whether others are sent than agreed."""
        self.steps, self.last, self._junk = self.steps + 1, Traffic(), False
        self._futures.clear()
        self._judge_late()
        self._watched = _queue(self._all_sent)
        self._chosen = {}
        for weight, layers in self._layers.items():
            found = [layer.sampled_inputs() for layer in layers]
            columns = [chosen for chosen in found if chosen is not None]
            if columns and len(columns) == len(found):
                same = len(columns) == 1
                self._chosen[weight] = columns[0] if same else torch.cat(columns).unique()
        return {weight: len(chosen) for weight, chosen in self._chosen.items()} != self._agreed

    def _agree(self, bucket: GradBucket, where: str) -> bool:
        """Tell the others, in the form they expect, that other numbers of columns are to be sent.

        Where all say so, and mean the same, that is the new plan. Else all see that some do, and
        this worker goes on in the old plan's sizes, with numbers that nobody will use: so nobody
        waits for what never comes.
        """
        buffer, order = bucket.buffer(), {w: i for i, w in enumerate(self._layers)}
        length = check_length(buffer.dtype, self.world)
        size = sum(part.count for part in self._parts(bucket, self._agreed))
        plan = [(order[weight], len(chosen)) for weight, chosen in self._chosen.items()]
        flat = buffer.new_zeros(size + length)
        wanted = torch.tensor(plan, dtype=torch.int64).reshape(-1)
        write_check(flat[-length:], self.rank, [wanted], other_plan=True)
        self._count(flat, 0)
        try:
            dist.all_reduce(flat, group=self.group)
        except RuntimeError as error:
            self._lost(error, where)
            return False
        verdict = judge(flat[-length:].cpu(), self.world)
        self._junk = not (verdict.other_plans == self.world and verdict.same)
        if self._junk:
            self._fail(*_OTHER_PLANS, where)
        else:
            self._agreed = {weight: len(chosen) for weight, chosen in self._chosen.items()}
        return not self._junk

    def _parts(self, bucket: GradBucket, plan: dict[nn.Parameter, int]) -> list[Part]:
        """Return a bucket's gradients; of those in the plan the columns, or as many others."""
        buffer, parts = bucket.buffer(), []
        for gradient, parameter in zip(bucket.gradients(), bucket.parameters(), strict=True):
            weight = cast(nn.Parameter, parameter)
            offset = cast(int, gradient.storage_offset() - buffer.storage_offset())
            view = gradient_view(buffer, offset, weight)
            columns = None
            if weight in plan:
                columns = self._chosen.get(weight)
                if columns is None or len(columns) != plan[weight]:
                    columns = torch.arange(plan[weight], device=buffer.device)
            parts.append(Part(view, columns))
        return parts

    def _reduce(
        self, flat: Tensor, parts: list[Part], length: int, buffer: Tensor, where: str
    ) -> Future[Tensor]:
        self._count(flat, buffer.numel() * buffer.element_size())
        try:
            work = dist.all_reduce(flat, group=self.group, async_op=True)
        except RuntimeError as error:
            self._lost(error, where)
            return _done(buffer if buffer.is_sparse else buffer.fill_(torch.nan))

        def arrived(future: Future[Any]) -> Tensor:
            try:
                value = future.value()
            except RuntimeError as error:
                self._lost(error, where)
                value = flat
            came: Tensor = value[0] if isinstance(value, list | tuple) else value
            if length and not self._broken:
                self._check(came[-length:], where)
            if not parts:
                return came
            unpack(came, parts)
            if self._error is not None:
                if not self._watched:  # nobody else would raise it
                    self._raise()
                buffer.fill_(torch.nan)
            return buffer

        done = cast(Any, work).get_future().then(arrived)
        self._futures.append(done)
        return done

    def _count(self, flat: Tensor, dense: int) -> None:
        sent = flat.numel() * flat.element_size()
        self.last, self.total = self.last.plus(sent, dense), self.total.plus(sent, dense)

    # -- what may be wrong -----------------------------------------------------------------------

    def _check(self, check: Tensor, where: str) -> None:
        if not check.is_cuda:
            self._judge(check, where)
            return
        host = torch.empty(check.shape, dtype=check.dtype, pin_memory=True)
        host.copy_(check, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._late.append((host, event, where))

    def _judge_late(self) -> None:
        late, self._late = self._late, []
        for check, event, where in late:
            event.synchronize()
            self._judge(check, where)

    def _judge(self, check: Tensor, where: str) -> None:
        verdict = judge(check, self.world)
        if verdict.other_plans:
            self._fail(*_OTHER_PLANS, where)
        elif not verdict.same:
            self._fail(*_OTHER_COLUMNS, where)
        elif verdict.elsewhere:
            self._fail(*_ELSEWHERE, where)

    def _fail(self, what: str, fix: str, where: str) -> None:
        self._error = self._error or CommunicationError(what, where=where, fix=fix)

    def _lost(self, error: RuntimeError, where: str) -> None:
        """Remember that the exchange itself failed: nothing more can be sent."""
        self._broken = True
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        self._fail(
            f"a worker was lost, or did not answer in time: {reason}",
            "see the other workers' output for the first that failed, and start all again from "
            "the last checkpoint",
            where,
        )

    def _all_sent(self) -> None:
        """Run at the end of backward, before the model's own work there."""
        if self._broken or not self._late:
            for future in self._futures:
                future.wait()
        if self._broken:
            self._raise()
        _queue(self._raise)  # after the model's own work, so that it can go on if one catches this

    def _raise(self) -> None:
        error = self._error
        if error is not None:
            if not self._broken:
                self._error = None
            raise error


def _hook(communication, bucket):  # torch compares annotations, which are text here
    with torch.no_grad():
        return communication.exchange(bucket)


def _done(value: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future(devices=[value.device] if value.is_cuda else None)
    future.set_result(value)
    return future


def _queue(function: Any) -> bool:
    """Call a function at the end of the running backward; False if none is running."""
    try:
        cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(function)
    except RuntimeError:
        return False
    return True


def _sampled_weights(
    module: nn.Module,
) -> tuple[dict[Tensor, str], dict[nn.Parameter, list[SampledLayer]]]:
    """Return name and layers of each weight that sampled layers alone hold."""
    holders: dict[nn.Parameter, list[tuple[nn.Module, str, str]]] = defaultdict(list)
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            holders[parameter].append((part, name, f"{prefix}.{name}" if prefix else name))
    names: dict[Tensor, str] = {}
    layers: dict[nn.Parameter, list[SampledLayer]] = {}
    for parameter, found in holders.items():
        sampled: list[SampledLayer] = [
            part for part, name, _ in found if name == "weight" and isinstance(part, SampledLayer)
        ]
        if len(sampled) == len(found) and parameter.requires_grad and parameter.dim() >= 2:
            names[parameter], layers[parameter] = found[0][2], sampled
    return names, layers
