"""The text form, reading: a tokenizer and a recursive-descent parser without recursion."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from lutcc.errors import ParseError, VerifyError, suggest
from lutcc.ir.lexer import Token, line_column, tokens
from lutcc.ir.module import Function, Module, Operation, Value, constant_digest
from lutcc.ir.ops import OPS
from lutcc.ir.printer import HEADER, VERSION
from lutcc.ir.registry import Registry
from lutcc.ir.types import (
    DTYPES,
    MAX_RANK,
    Array,
    Attr,
    Dim,
    Layout,
    Sym,
    TensorType,
    is_float,
    numpy_dtype,
)
from lutcc.ir.verifier import verify


def parse(
    text: str, *, constants: Mapping[str, Array] | None = None, registry: Registry = OPS
) -> Module:
    """Read a module from its text form and verify it.

    Parameters
    ----------
    text
        What :func:`lutcc.ir.to_text` writes. ``//`` starts a comment.
    constants
        Arrays by name for constants whose elements were elided; type and sha256 must agree.
    registry
        The ops that may be used.

    Raises
    ------
    ParseError
        If the text is malformed; ``where`` is ``line:column``.
    VerifyError
        If the module breaks a rule of the IR.

    Examples
    --------
    >>> text = "%y = relu(%x) : float32[n, 4] return %y"
    >>> m = parse("lutcc.ir 1 func @main(%x: float32[n, 4]) { " + text + " }")
    >>> m.main.body[0].opcode
    'relu'
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParseError(f"the text of a module is a str, not {type(text).__name__}", where="1:1")
    module = _Parser(text, constants or {}, registry).module()
    verify(module, registry)
    return module


_MAX_DIGITS = 40


class _Parser:
    """Reads tokens one by one; every method leaves the position after what it read."""

    def __init__(self, text: str, constants: Mapping[str, Array], registry: Registry) -> None:
        self.text = text
        self.given = constants
        self.registry = registry
        self.stream = tokens(text)
        self.token = next(self.stream)

    def fail(self, what: str, token: Token | None = None, fix: str | None = None) -> NoReturn:
        at = self.token if token is None else token
        raise ParseError(what, where=line_column(self.text, at.start), fix=fix)

    def advance(self) -> Token:
        token = self.token
        if token.kind != "end":
            self.token = next(self.stream)
        return token

    def expect(self, kind: str, what: str, text: str | None = None) -> Token:
        if self.token.kind != kind or (text is not None and self.token.text != text):
            shown = self.token.text if len(self.token.text) < 40 else self.token.text[:37] + "..."
            self.fail(
                f"expected {what}, found " + (repr(shown) if shown else "the end of the text")
            )
        return self.advance()

    def take(self, text: str) -> bool:
        if self.token.text == text and self.token.kind in ("punctuation", "word"):
            self.advance()
            return True
        return False

    def punctuation(self, text: str) -> None:
        self.expect("punctuation", repr(text), text)

    def integer(self, what: str) -> int:
        token = self.expect("int", what)
        if len(token.text) > _MAX_DIGITS:
            self.fail(f"{what} has more than {_MAX_DIGITS} digits", token)
        return int(token.text)

    def string(self, what: str) -> str:
        token = self.expect("string", what)
        if "\\" not in token.text and token.text.isprintable():
            return token.text[1:-1]
        try:
            value = json.loads(token.text)
        except ValueError as error:
            self.fail(f"malformed string ({error})", token)
        return str(value)

    def module(self) -> Module:
        """Read the header, the constants and the functions."""
        start = self.token
        if self.expect("word", f"the header {HEADER!r}").text != "lutcc.ir":
            self.fail(f"the text does not start with {HEADER!r}", start)
        version = self.integer("the version of the text form")
        if version != VERSION:
            self.fail(
                f"version {version} of the text form; this lutcc reads version {VERSION}", start
            )
        arrays: dict[str, Array] = {}
        functions: list[Function] = []
        while self.token.kind != "end":
            token = self.expect("word", "'constant' or 'func'")
            if token.text == "constant":
                at = self.token
                name, array = self.constant()
                if name in arrays:
                    self.fail(f"constant @{name} is defined twice", at)
                arrays[name] = array
            elif token.text == "func":
                functions.append(self.function())
            else:
                self.fail(f"expected 'constant' or 'func', found {token.text!r}", token)
        return Module(tuple(functions), arrays)

    def constant(self) -> tuple[str, Array]:
        """Read ``@name : type = dense [...] | base64 "..." | sha256 "..."``."""
        at = self.token
        name = self.expect("symbol", "the name of a constant, like @lut0").text[1:]
        self.punctuation(":")
        type_ = self.type()
        if type_.symbols or str(type_.layout) != "row_major":
            self.fail(f"constant @{name} has type {type_}, but it must be static and row-major", at)
        self.punctuation("=")
        form = self.expect("word", "'dense', 'base64' or 'sha256'")
        if form.text == "dense":
            return name, self.dense(name, type_)
        if form.text == "base64":
            return name, self.base64(name, type_)
        if form.text == "sha256":
            return name, self.elided(name, type_)
        self.fail(f"expected 'dense', 'base64' or 'sha256', found {form.text!r}", form)

    def dense(self, name: str, type_: TensorType) -> Array:
        at = self.token
        self.punctuation("[")
        elements: list[bool | int | float] = []
        while not self.take("]"):
            if elements:
                self.punctuation(",")
            elements.append(self.element(type_))
        shape = type_.static_shape
        if len(elements) != math.prod(shape):
            self.fail(f"constant @{name} of type {type_} has {len(elements)} elements", at)
        return np.array(elements, numpy_dtype(type_.dtype)).reshape(shape)

    def element(self, type_: TensorType) -> bool | int | float:
        token = self.token
        if type_.dtype == "bool":
            word = self.expect("word", "'true' or 'false'").text
            if word not in ("true", "false"):
                self.fail(f"expected 'true' or 'false', found {word!r}", token)
            return word == "true"
        if is_float(type_.dtype):
            value = self.number()
            with np.errstate(all="ignore"):
                if not np.isfinite(numpy_dtype(type_.dtype).type(value)):
                    self.fail(f"{token.text} is not a finite {type_.dtype}", token)
            return value
        number = self.integer(f"an integer of type {type_.dtype}")
        info = np.iinfo(type_.dtype)
        if not info.min <= number <= info.max:
            self.fail(
                f"{number} is not in {info.min}..{info.max}, the range of {type_.dtype}", token
            )
        return number

    def number(self) -> float:
        if self.token.kind == "int":
            return float(self.integer("a number"))
        return float(self.expect("float", "a number").text)

    def base64(self, name: str, type_: TensorType) -> Array:
        at = self.token
        encoded = self.string("the elements in base64")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            self.fail(f"constant @{name} is not valid base64 ({error})", at)
        if len(data) != type_.nbytes:
            self.fail(
                f"constant @{name} of type {type_} needs {type_.nbytes} bytes, but got {len(data)}",
                at,
            )
        if type_.dtype == "bool" and data.strip(b"\0\1"):
            self.fail(f"constant @{name} of type bool holds bytes other than 0 and 1", at)
        return np.frombuffer(data, numpy_dtype(type_.dtype).newbyteorder("<")).reshape(
            type_.static_shape
        )

    def elided(self, name: str, type_: TensorType) -> Array:
        at = self.token
        digest = self.string("the sha256 of the elements")
        if name not in self.given:
            self.fail(
                f"the elements of constant @{name} are elided and not among the given constants; "
                + suggest(name, self.given),
                at,
                fix="pass them: parse(text, constants={...})",
            )
        array = np.asarray(self.given[name])
        if tuple(array.shape) != type_.shape or array.dtype.name != type_.dtype:
            self.fail(
                f"constant @{name} is {type_} in the text, but the given array is "
                f"{array.dtype.name}{list(array.shape)}",
                at,
            )
        found = constant_digest(array)
        if found != digest:
            self.fail(
                f"constant @{name} has sha256 {digest} in the text, but the given array has "
                f"{found}",
                at,
            )
        return array

    def type(self) -> TensorType:
        """Read ``float32[49*n, 64] row_blocked<64, 1>``."""
        at = self.token
        dtype = self.expect("word", "an element type").text
        if dtype not in DTYPES:
            self.fail(f"unknown element type {dtype!r}; {suggest(dtype, DTYPES)}", at)
        self.punctuation("[")
        dims: list[Dim] = []
        while not self.take("]"):
            if dims:
                self.punctuation(",")
            dims.append(self.dim())
            if len(dims) > MAX_RANK:
                self.fail(f"more than {MAX_RANK} dimensions", at)
        layout = Layout("row_major")
        if self.token.text in ("row_major", "column_major", "row_blocked"):
            layout = self.layout()
        try:
            return TensorType(tuple(dims), dtype, layout)
        except VerifyError as error:
            self.fail(error.what, at, error.fix)

    def dim(self) -> Dim:
        token = self.token
        if token.kind == "word":
            return self.symbol(self.advance(), 1)
        size = self.integer("a dimension")
        if self.take("*"):
            return self.symbol(self.expect("word", "a symbol"), size)
        return size

    def symbol(self, token: Token, factor: int) -> Sym:
        try:
            return Sym(token.text, factor)
        except VerifyError as error:
            self.fail(error.what, token, error.fix)

    def layout(self) -> Layout:
        at = self.advance()
        try:
            if at.text == "row_blocked":
                self.punctuation("<")
                rows = self.integer("rows of a block")
                self.punctuation(",")
                inner = self.integer("inner columns of a block")
                self.punctuation(">")
                return Layout("row_blocked", rows, inner)
            if at.text == "column_major":
                return Layout("column_major")
            if at.text == "row_major":
                return Layout("row_major")
        except VerifyError as error:
            self.fail(error.what, at, error.fix)
        self.fail(
            f"unknown layout {at.text!r}; layouts are row_major, column_major, row_blocked", at
        )

    def function(self) -> Function:
        """Read ``@name(%x: type, ...) { ... return %y }``."""
        name = self.expect("symbol", "the name of a function, like @main").text[1:]
        scope: dict[str, Value] = {}
        params: list[Value] = []
        self.punctuation("(")
        while not self.take(")"):
            if params:
                self.punctuation(",")
            value_name = self.expect("value", "a parameter, like %x").text[1:]
            self.punctuation(":")
            params.append(Value(value_name, self.type()))
            scope.setdefault(value_name, params[-1])
        self.punctuation("{")
        body: list[Operation] = []
        while not self.take("return"):
            body.append(self.operation(scope))
        returns = [self.use(scope)]
        while self.take(","):
            returns.append(self.use(scope))
        self.punctuation("}")
        return Function(name, tuple(params), tuple(body), tuple(returns))

    def use(self, scope: Mapping[str, Value]) -> Value:
        token = self.expect("value", "a value, like %x")
        name = token.text[1:]
        if name not in scope:
            self.fail(f"{token.text} is used before it is defined; {suggest(name, scope)}", token)
        return scope[name]

    def operation(self, scope: dict[str, Value]) -> Operation:
        """Read ``%a, %b = opcode(%x, ...) {attrs} : type, type``."""
        names = [self.expect("value", "an operation, like %y = relu(%x), or 'return'")]
        while self.take(","):
            names.append(self.expect("value", "the name of a result"))
        self.punctuation("=")
        at = self.token
        opcode = self.expect("word", "an opcode").text
        if opcode not in self.registry:
            self.fail(f"unknown op {opcode!r}; {suggest(opcode, self.registry)}", at)
        operands: list[Value] = []
        self.punctuation("(")
        while not self.take(")"):
            if operands:
                self.punctuation(",")
            operands.append(self.use(scope))
        attrs: dict[str, Attr] = {}
        if self.take("{"):
            while not self.take("}"):
                if attrs:
                    self.punctuation(",")
                key = self.expect("word", "the name of an attribute")
                if key.text in attrs:
                    self.fail(f"attribute {key.text!r} is given twice", key)
                self.punctuation("=")
                attrs[key.text] = self.attr()
        where = f"{line_column(self.text, at.start)} ({opcode})"
        attrs = self.registry[opcode].complete_attrs(attrs, where)
        self.punctuation(":")
        types = [self.type()]
        while self.take(","):
            types.append(self.type())
        if len(types) != len(names):
            self.fail(f"{len(names)} results are named, but {len(types)} types are given", at)
        results: list[Value] = []
        for token, type_ in zip(names, types, strict=True):
            name = token.text[1:]
            if name in scope:
                self.fail(f"{token.text} is defined twice", token)
            results.append(Value(name, type_))
            scope[name] = results[-1]
        return Operation(opcode, tuple(operands), tuple(results), tuple(attrs.items()))

    def attr(self) -> Attr:
        token = self.token
        if token.kind == "string":
            return self.string("a string")
        if token.kind == "int":
            return self.integer("an integer")
        if token.kind == "float":
            return self.number()
        if self.take("true"):
            return True
        if self.take("false"):
            return False
        if self.take("layout"):
            return self.layout()
        if self.take("("):
            dims: list[Dim] = []
            while not self.take(")"):
                dims.append(self.dim())
                if not self.take(","):
                    self.punctuation(")")
                    break
            return tuple(dims)
        self.fail(f"expected an attribute, found {token.text!r}")
