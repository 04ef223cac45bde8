"""What passes share: the protocol, and an editor that rebuilds a function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeAlias

from lutcc.ir.module import Function, Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.types import Array, Attr, Dim, TensorType, substitute_dim, type_of_array


class Pass(Protocol):
    """A pure rewrite of a module that keeps what it computes; options are dataclass fields."""

    def __call__(self, module: Module) -> Module:
        """Return the rewritten module."""
        ...


def is_rowwise(op: Operation) -> bool:
    """Tell whether row i of each result depends only on row i of the operands marked as rows."""
    opdef = OPS.get(op.opcode)
    return opdef is not None and opdef.rowwise and op.results[0].type.rank == 2


def fresh_name(wanted: str, taken: Collection[str]) -> str:
    """Return ``wanted``, or ``wanted_1``, ``wanted_2``, ... if it is taken.

    Examples
    --------
    >>> fresh_name("lut", {"lut", "lut_1"})
    'lut_2'
    """
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def retyped(op: Operation, types: Mapping[str, TensorType]) -> Operation:
    """Return the operation with the values named in ``types`` given these types."""

    def retype(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(Value(v.name, types.get(v.name, v.type)) for v in values)

    return replace(op, operands=retype(op.operands), results=retype(op.results))


def substitute_attr(attr: Attr, symbols: Mapping[str, Dim]) -> Attr:
    """Return the attribute with the symbols of a shape replaced."""
    if not isinstance(attr, tuple):
        return attr
    return tuple(substitute_dim(d, symbols) for d in attr)


def readers_of(function: Function) -> dict[str, list[Operation]]:
    """Map each value's name to the operations that read it, in order."""
    readers: dict[str, list[Operation]] = {}
    for op in function.body:
        for value in dict.fromkeys(op.operands):
            readers.setdefault(value.name, []).append(op)
    return readers


class NewConstants:
    """Makes constants with names that nothing in main has.

    Attributes
    ----------
    arrays
        The module's constants, and those that were made.
    """

    def __init__(self, module: Module) -> None:
        self.arrays: dict[str, Array] = dict(module.constants)
        self._taken = {value.name for op in module.main.body for value in op.results}
        self._taken |= {value.name for value in module.main.params} | set(self.arrays)

    def make(self, wanted: str, array: Array) -> Operation:
        """Return the operation that gives a new constant."""
        name = fresh_name(wanted, self._taken)
        self._taken.add(name)
        self.arrays[name] = array
        return Operation("constant", (), (Value(name, type_of_array(array)),), (("ref", name),))


class Editor:
    """Rebuilds one function of a module; rules look at what is emitted so far and emit more.

    A rule sees one operation at a time, in order; what is before it has been rewritten already and
    keeps the names of its results, so the use counts of the original function stay valid.
    """

    def __init__(self, module: Module, function: Function) -> None:
        self.module = module
        self.function = function
        self.constants: dict[str, Array] = dict(module.constants)
        self.body: list[Operation] = []
        self.changed = False
        self._definitions: dict[str, Operation] = {}
        self._uses = function.use_counts
        self._aliases: dict[str, Value] = {}
        self._names = set(function.value_names)

    def producer(self, value: Value, *opcodes: str) -> Operation | None:
        """Return the operation that defines ``value``, if it is one of ``opcodes``."""
        op = self._definitions.get(value.name)
        return op if op is not None and op.opcode in opcodes else None

    def sole_producer(self, value: Value, *opcodes: str) -> Operation | None:
        """Return the operation that defines ``value``, if nothing else reads that value."""
        return self.producer(value, *opcodes) if self._uses[value.name] == 1 else None

    def array(self, value: Value) -> Array | None:
        """Return the elements of a value that is a constant."""
        op = self.producer(value, "constant")
        return None if op is None else self.constants[str(op.attr("ref"))]

    def arrays(self, *values: Value) -> list[Array] | None:
        """Return the elements of all values, or None unless all are constants."""
        found = [array for v in values if (array := self.array(v)) is not None]
        return found if len(found) == len(values) else None

    def ref(self, value: Value) -> str:
        """Return the name of the module constant behind a value that is a constant."""
        op = self.producer(value, "constant")
        return value.name if op is None else str(op.attr("ref"))

    def emit(self, op: Operation) -> None:
        """Append an operation."""
        self.body.append(op)
        for value in op.results:
            self._definitions[value.name] = op
            self._names.add(value.name)

    def emit_constant(self, wanted: str, array: Array) -> Value:
        """Append a new constant and return its value."""
        ref = fresh_name(wanted, self.constants)
        self.constants[ref] = array
        value = self.fresh(wanted, type_of_array(array))
        self.emit(Operation("constant", (), (value,), (("ref", ref),)))
        return value

    def emit_op(
        self, opcode: str, operands: tuple[Value, ...], results: tuple[Value, ...], **attrs: Attr
    ) -> None:
        """Append an operation with the defaults of its attributes filled in."""
        complete = OPS[opcode].complete_attrs(attrs, opcode)
        self.emit(Operation(opcode, operands, results, tuple(complete.items())))

    def fresh(self, wanted: str, type_: TensorType) -> Value:
        """Return a new value."""
        name = fresh_name(wanted, self._names)
        self._names.add(name)
        return Value(name, type_)

    def alias(self, old: Value, new: Value) -> None:
        """Let all later uses of ``old`` read ``new``."""
        self._aliases[old.name] = new
        self._uses[new.name] += self._uses[old.name]

    def run(self, rules: Iterable[Rule]) -> Module:
        """Offer every operation to the rules in order; the first that fires replaces it."""
        ordered = tuple(rules)
        for original in self.function.body:
            operands = tuple(self._aliases.get(v.name, v) for v in original.operands)
            op = replace(original, operands=operands)
            if any(rule(self, op) for rule in ordered):
                self.changed = True
            else:
                self.emit(op)
        returns = tuple(self._aliases.get(v.name, v) for v in self.function.returns)
        function = replace(self.function, body=tuple(self.body), returns=returns)
        kept = tuple(function if f.name == function.name else f for f in self.module.functions)
        return Module(kept, self.constants)


#: A rule looks at one operation and either replaces it (emits operations that define its results,
#: or an alias) and returns True, or emits nothing and returns False.
Rule: TypeAlias = Callable[[Editor, Operation], bool]


def rewrite(module: Module, rules: Iterable[Rule], cleanup: Pass) -> Module:
    """Apply rules to every function until none fires; ``cleanup`` runs before each round.

    Cleaning up first matters: a dead reader of a value would keep rules from folding into it.
    """
    ordered = tuple(rules)
    module = cleanup(module)
    changed = True
    while changed:
        changed = False
        for name in [f.name for f in module.functions]:
            editor = Editor(module, module.function(name))
            module = editor.run(ordered)
            changed = changed or editor.changed
        module = cleanup(module)
    return module
