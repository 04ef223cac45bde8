"""Row fusion: maximal groups of row-wise operations become functions, one per group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.passes.base import is_rowwise
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Dim


@dataclass(frozen=True, slots=True)
class FuseRows:
    """Outline row-wise operations over the same rows, with their constants, into functions.

    Row i of what they compute depends on row i of what they read, so a backend can run a whole
    group per block of rows and keep codes and sums in the L1 cache: encode and accumulate fused.
    Groups are maximal, connected, and convex (nothing outside lies on a path between two members).
    Look-ups, which go by blocks of rows, and operations that reduce whole rows (layer norm and
    softmax), which take them as they lie, are kept in groups apart. Main is left with calls, data
    movement, element-wise ops of other ranks, and their constants.

    Parameters
    ----------
    prefix
        Functions are named ``rows0``, ``rows1``, ... in the order they run.

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> m = parse('''lutcc.ir 1 func @main(%x: float32[n, 4]) {
    ...   %a = relu(%x) : float32[n, 4]
    ...   %y = add(%a, %x) : float32[n, 4] return %y }''')
    >>> m = FuseRows()(m)
    >>> [op.opcode for op in m.main.body], [op.opcode for op in m.function("rows0").body]
    (['call'], ['relu', 'add'])
    """

    prefix: str = "rows"

    def __call__(self, module: Module) -> Module:
        """Return the outlined module; only main is looked at."""
        module = DeadCode()(module)
        groups = _groups(module.main)
        taken = {f.name for f in module.functions}
        body: list[Operation] = []
        outlined: list[Function] = []
        for unit in _schedule(module.main, groups):
            if isinstance(unit, Operation):
                body.append(unit)
                continue
            name = f"{self.prefix}{len(outlined)}"
            while name in taken:
                name += "_"
            taken.add(name)
            function, call = _outline(module.main, unit, name)
            outlined.append(function)
            body.append(call)
        used = {v.name for op in body for v in op.operands}
        used.update(v.name for v in module.main.returns)
        kept = tuple(op for op in body if op.opcode != "constant" or op.results[0].name in used)
        main = replace(module.main, body=kept)
        others = tuple(f for f in module.functions if f.name != "main")
        return Module((main, *outlined, *others), module.constants)


def _row_operands(op: Operation) -> list[Value]:
    """Return the operands that the op maps row by row."""
    return [v for v, by_row in zip(op.operands, _row_flags(op), strict=True) if by_row]


def _row_flags(op: Operation) -> list[bool]:
    return [operand.rows for operand in OPS[op.opcode].operands]


def _groups(function: Function) -> list[list[int]]:
    """Partition the row-wise operations into groups of indices.

    The level of an operation grows whenever a path leaves the row-wise operations over its rows and
    comes back, or reads one of their results as a whole (a weight, say) and not row by row. So
    operations of one level have no outsider between them.

    It also grows behind a ``weighted_gather``: its result exists only when all rows of a block have
    passed the tables. Elementwise operations may finish it on the way to memory, as long as each
    result is read by the next alone; whatever else reads it belongs to the next level.

    And it grows where a path comes from look-ups to a reduction of rows, or the other way round.
    """
    producer = {v.name: i for i, op in enumerate(function.body) for v in op.results}
    uses = function.use_counts
    returned = {v.name for v in function.returns}
    level: list[int] = []
    keys: list[tuple[Dim, int] | None] = []
    families: list[str] = []
    late: set[str] = set()
    for op in function.body:
        rows = op.results[0].type.shape[0] if is_rowwise(op) else None
        mapped = _row_flags(op) if rows is not None else [False] * len(op.operands)
        depth = 0
        near: dict[str, int] = {}
        for value, by_row in zip(op.operands, mapped, strict=True):
            index = producer.get(value.name)
            if index is None or function.body[index].opcode == "constant":
                continue
            source = keys[index]
            inside = by_row and source is not None and source[0] == rows
            if inside:
                near[value.name] = level[index]
            leaves = rows is not None and not inside
            depth = max(depth, level[index] + (1 if leaves else 0))
        same = [name for name, of in near.items() if of == depth]
        if late.intersection(same):
            alone = len(same) == 1 and uses[same[0]] == 1 and same[0] not in returned
            if alone and op.opcode in _FINISHING:
                late.add(op.results[0].name)
            else:
                depth += 1
        own = _FAMILIES.get(op.opcode, "")
        met = {families[producer[name]] for name, of in near.items() if of == depth} | {own}
        if len(met - {""}) > 1:
            depth += 1
            met = {own}
        if op.opcode == "weighted_gather":
            late.add(op.results[0].name)
        level.append(depth)
        families.append(max(met))
        keys.append(None if rows is None else (rows, depth))
    return _connected(function, keys, families)


#: Operations that may finish the results of a gather, element by element.
_FINISHING = ("add", "affine", "relu", "leaky_relu", "clamp", "round", "activation", "quantize")
#: Operations that keep groups of their own; others join either.
_FAMILIES = {
    **dict.fromkeys(("tree_encode", "interval_encode", "nearest_encode"), "look-ups"),
    **dict.fromkeys(("lut_accumulate",), "look-ups"),
    **dict.fromkeys(("hadamard", "block_diagonal_matmul"), "look-ups"),
    **dict.fromkeys(("sign_hash", "weighted_gather"), "look-ups"),
    **dict.fromkeys(("layer_norm", "softmax"), "reductions"),
}


def _connected(
    function: Function, keys: list[tuple[Dim, int] | None], families: list[str]
) -> list[list[int]]:
    """Split operations of equal key into groups that share rows, directly or through others.

    What belongs to no family joins the look-ups that it touches, and only else the reductions: were
    that chosen by chance, two groups might each need a result of the other.
    """
    parent = list(range(len(keys)))
    family = list(families)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        parent[root(j)] = root(i)

    touching: dict[tuple[tuple[Dim, int], str], list[int]] = {}
    for index, (op, key) in enumerate(zip(function.body, keys, strict=True)):
        if key is not None:
            for value in (*_row_operands(op), *op.results):
                touching.setdefault((key, value.name), []).append(index)
    for kind in ("", "look-ups", "reductions"):
        for indices in touching.values():
            first = next((i for i in indices if family[root(i)] == kind), None)
            for i in indices:
                if first is not None and family[root(i)] in ("", kind):
                    join(first, i)
    members: dict[int, list[int]] = {}
    for index, key in enumerate(keys):
        if key is not None:
            members.setdefault(root(index), []).append(index)
    return list(members.values())


def _schedule(function: Function, groups: list[list[int]]) -> Iterable[Operation | list[Operation]]:
    """Order groups and single operations so that everything is defined before it is used."""
    unit_of = {i: ("group", g) for g, members in enumerate(groups) for i in members}
    units = {unit_of.get(i, ("op", i)): list[int]() for i in range(len(function.body))}
    for index in range(len(function.body)):
        units[unit_of.get(index, ("op", index))].append(index)
    producer = {v.name: i for i, op in enumerate(function.body) for v in op.results}
    needs = {
        unit: {
            unit_of.get(producer[v.name], ("op", producer[v.name]))
            for i in members
            for v in function.body[i].operands
            if v.name in producer
        }
        - {unit}
        for unit, members in units.items()
    }
    done: set[tuple[str, int]] = set()
    waiting = list(units)
    while waiting:
        ready = next(unit for unit in waiting if needs[unit] <= done)
        waiting.remove(ready)
        done.add(ready)
        members = [function.body[i] for i in units[ready]]
        yield members if ready[0] == "group" else members[0]


def _outline(function: Function, members: list[Operation], name: str) -> tuple[Function, Operation]:
    """Make a function of ``members`` and the call that replaces them."""
    definitions = function.definitions
    inside = {v.name for op in members for v in op.results}
    params: list[Value] = []
    constants: list[Operation] = []
    for op in members:
        rows = {v.name for v in _row_operands(op)}
        for value in op.operands:
            source = definitions.get(value.name)
            if value.name in inside or value in params:
                continue
            if source is not None and source.opcode == "constant" and value.name not in rows:
                if source not in constants:
                    constants.append(source)
            else:
                params.append(value)
    body: list[Operation] = []
    emitted: set[str] = set()
    for op in members:  # each constant right before its first use
        for value in op.operands:
            source = definitions.get(value.name)
            if source in constants and value not in params and value.name not in emitted:
                emitted.add(value.name)
                body.append(source)
        body.append(op)
    member_ids = {id(op) for op in members}
    read = {v.name for op in function.body if id(op) not in member_ids for v in op.operands} | {
        v.name for v in function.returns
    }
    returns = tuple(v for op in members for v in op.results if v.name in read)
    call = Operation("call", tuple(params), returns, (("callee", name),))
    return Function(name, tuple(params), tuple(body), returns), call
