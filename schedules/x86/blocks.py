"""A stage over one block of rows: every step in turn, values between steps in cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.intrinsics.x86 import PACKSSDW_512
from lutcc.schedules.x86 import edges, linear, lut_accumulate, tree_encode
from lutcc.schedules.x86.context import Codes, Columns, External, StageContext
from lutcc.schedules.x86.emit import Expr, View, bind, cast, i64, loop, splat
from lutcc.schedules.x86.pack import CHUNK, chunk_starts, round_up
from lutcc.schedules.x86.pack_images import SMALL_SUMS
from lutcc.schedules.x86.plan import ELEMENTWISE, ENCODERS, Step, plan_steps


class BlockEmitter:
    """Emits the body of one block of rows."""

    def __init__(self, ctx: StageContext, function: Function) -> None:
        self.ctx = ctx
        self.function = function
        self.steps = plan_steps(function)
        self.codes: dict[str, dict[tuple[bool, int], Codes]] = {}
        self.consumers: dict[str, list[Operation]] = {}
        for op in function.body:
            for value in op.operands:
                self.consumers.setdefault(value.name, []).append(op)

    def emit(self, inputs: dict[str, External], outputs: dict[str, External]) -> None:
        """Emit all steps; ``outputs`` maps value names to where they are stored."""
        self.ctx.values.update(inputs)
        for step in self.steps:
            if step.producer is not None and step.producer.opcode in ENCODERS:
                self._encode(step, outputs.get(step.result.name))
            else:
                self._columns(step, outputs.get(step.result.name))
        for value in self.function.params:
            if value.name in outputs:
                self._columns(Step(None, (), value, value), outputs[value.name])

    def _encode(self, step: Step, output: External | None) -> None:
        op = step.producer
        assert op is not None
        codebooks = step.result.type.size(1)
        layouts: dict[tuple[bool, int], Codes] = {}
        consumers = self.consumers.get(step.result.name, [])
        scans = [op for op in consumers if op.opcode == "lut_accumulate"]
        for scan in scans:
            layout = self._scan_codes(scan, codebooks)
            layouts.setdefault((layout.dot, layout.entries if layout.dot else 0), layout)
        if output is not None or len(scans) < len(consumers) or not layouts:
            plain = Codes(
                self.ctx.scratch.take(self.ctx.block_rows * codebooks, "uint8"),
                codebooks,
                16,
                False,
                16,
            )
            layouts.setdefault((False, -1), plain)
        for codes in layouts.values():
            ENCODERS[op.opcode].emit_block(self.ctx, op, codes)
        self.codes[step.result.name] = layouts
        if len(scans) < len(consumers):
            self.ctx.values[step.result.name] = self._codes_as_columns(layouts[False, -1])
        if output is not None:
            self._store_codes(layouts[False, -1], output)

    def _store_codes(self, codes: Codes, output: External) -> None:
        sink = edges.RowMajorSink(self.ctx, output)
        starts = chunk_starts(codes.codebooks)
        where = self.ctx.blob.add("ints", "int32", [], values=starts)
        sink.open(1)
        with loop(len(starts)) as k, loop(self.ctx.groups) as group:
            start = bind(cast("int64", where.load(k)))
            with loop(min(CHUNK, codes.codebooks)) as j:
                raw = codes.view.load((group * codes.codebooks + start + j) * 16, 16)
                sink.put(j, start, group, 0, cast("float32x16", raw))
            sink.commit(start, group, 1)
            sink.advance(i64(0), 1)

    def _codes_as_columns(self, codes: Codes) -> Columns:
        """Return codes as float32 columns, for an encoder that reads them."""
        width = codes.codebooks
        view = self.ctx.scratch.take(Columns.size(self.ctx.block_rows, width), "float32")
        target = Columns(view, width, "float32")
        with loop(self.ctx.groups) as group, loop(width) as c:
            raw = codes.view.load((group * width + c) * 16, 16)
            target.view.store(target.index(group, c), cast("float32x16", raw), 16)
        return target

    def _scan_codes(self, scan: Operation, codebooks: int) -> Codes:
        size = round_up(codebooks, 4) * round_up(self.ctx.block_rows, 32)
        return lut_accumulate.code_layout(
            self.ctx, scan, codebooks, self.ctx.scratch.take(size, "uint8")
        )

    def _codes_for(self, scan: Operation) -> Codes:
        name = scan.operands[0].name
        dot = lut_accumulate.uses_dot(self.ctx.isa, scan)
        own = scan.operands[1].type.size(1)
        entries = lut_accumulate.padded_entries(own)
        if name in self.codes:
            found = self.codes[name][dot, entries if dot else 0]
            return Codes(found.view, found.codebooks, found.rows, found.dot, entries)
        have = self.ctx.values[name]
        codes = self._scan_codes(scan, have.columns)
        if isinstance(have, External):
            lut_accumulate.load_external_codes(self.ctx, have, codes, own)
        else:
            lut_accumulate.load_column_codes(self.ctx, have, codes, own)
        return codes

    def _as_columns(self, value: Value) -> Columns:
        have = self.ctx.values[value.name]
        if isinstance(have, External):
            have = edges.materialise(self.ctx, have)
            self.ctx.values[value.name] = have
        return have

    def _columns(self, step: Step, output: External | None) -> None:
        columns = step.result.type.size(1)
        sinks: list[Any] = []
        if output is not None:
            sinks.append(edges.RowMajorSink(self.ctx, output))
        if self.consumers.get(step.result.name) and step.source is not step.result:
            dtype, together = "float32", 16
            if step.result.type.dtype == "int32":
                dtype = "int32"
            if output is None and self._in_words(step):
                dtype, together = "int16", 32 if self.ctx.isa.has_avx512 else 16
            size = Columns.size(round_up(self.ctx.block_rows, together), columns)
            sums = dtype != "float32" and _gives_sums(step)
            view = self.ctx.scratch.take(size, dtype)
            target = Columns(view, columns, dtype, sums, together)
            self.ctx.values[step.result.name] = target
            sinks.append(edges.ColumnsSink(target))
        self._tiles(step, sinks)

    def _in_words(self, step: Step) -> bool:
        """Whether a step's sums come in 16 bits: only trees that compare words read them."""
        op, readers = step.producer, self.consumers[step.result.name]
        if op is None or not _gives_sums(step):
            return False
        if not all(tree_encode.reads_words(self.ctx.isa, reader) for reader in readers):
            return False
        for codes in (reader.results[0] for reader in readers):
            scans = self.consumers.get(codes.name, [])
            if codes in self.function.returns or {s.opcode for s in scans} != {"lut_accumulate"}:
                return False
            if self.ctx.isa.has_avx512 and not self._in_pairs(scans):
                return False
        return lut_accumulate.gives_words(self.ctx.isa, op, self.ctx.array(op.operands[1]))

    def _in_pairs(self, scans: list[Operation]) -> bool:
        """Whether scans take groups of 16 rows two by two, whose codes lie for dot products."""
        dot = all(lut_accumulate.uses_dot(self.ctx.isa, scan) for scan in scans)
        return dot and self.ctx.configs.accumulate.tile_r % 2 == 0

    def emit_columns(self, step: Step, target: Columns) -> None:
        """Emit one step whose result stays in 16-row columns."""
        self._tiles(step, [edges.ColumnsSink(target)])

    def _tiles(self, step: Step, sinks: list[Any]) -> None:
        columns = step.result.type.size(1)
        others = {
            v.name: self._as_columns(v)
            for op in step.chain
            if op.opcode == "add"
            for v in op.operands[1:]
        }
        producer, tile = self._producer(step)
        starts = chunk_starts(columns)
        where = self.ctx.blob.add("ints", "int32", [], values=starts)
        count = min(tile.tile_m, CHUNK)
        per_super = producer.rows // 16
        supers = self.ctx.groups if per_super == 1 else self.ctx.groups // i64(per_super)
        target = self.ctx.values.get(step.result.name)
        pairs = isinstance(target, Columns) and target.together == 32
        emitter = _TileEmitter(self, step, producer, sinks, others, count, per_super, pairs)
        for sink in sinks:
            sink.open(tile.tile_r * per_super)
        with loop(len(starts)) as chunk:
            start = bind(cast("int64", where.load(chunk)))
            whole = bind(supers // i64(tile.tile_r))
            with loop(whole) as t:
                emitter.emit(chunk, start, [t * tile.tile_r + r for r in range(tile.tile_r)])
            done = bind(whole * tile.tile_r)
            if pairs and tile.tile_r > 2:
                two = bind((supers - done) // i64(2))
                with loop(two) as t:
                    emitter.emit(chunk, start, [done + t * 2, done + t * 2 + 1])
                done = bind(done + two * 2)
            if tile.tile_r > 1:
                with loop(supers - done) as t:
                    emitter.emit(chunk, start, [done + t])
        for sink in sinks:
            sink.close()

    def _producer(self, step: Step) -> tuple[Any, Any]:
        op = step.producer
        if op is None:
            assert step.source is not None
            return _LoadTile(self._as_columns(step.source)), _LOAD_TILE
        if op.opcode == "linear":
            tile = linear.LinearTile(self.ctx, op, self._as_columns(op.operands[0]))
            return tile, self.ctx.configs.linear
        codes = self._codes_for(op)
        if codes.dot:
            return lut_accumulate.DotTile(self.ctx, op, codes), self.ctx.configs.accumulate
        target = self.ctx.values.get(step.result.name)
        sums = "int16" if isinstance(target, Columns) and target.dtype == "int16" else "int32"
        tile = lut_accumulate.WidenTile(self.ctx, op, codes, sums)
        return tile, self.ctx.configs.accumulate


def _gives_sums(step: Step) -> bool:
    """Whether a step gives the sums of a look-up as they are, and none can reach 2**30."""
    op = step.producer
    if op is None or op.opcode != "lut_accumulate" or step.result != op.results[0]:
        return False
    return op.operands[1].type.size(0) * 255 < SMALL_SUMS


class _LoadTile:
    """A producer that reads columns."""

    rows = 16

    def __init__(self, source: Columns) -> None:
        self.source = source

    def tile_at(self, column: Expr, group: Expr) -> Expr:
        return self.source.view.load(self.source.index(group, column), 16)


@dataclass(frozen=True)
class _LoadTileConfig:
    tile_m: int = 1
    tile_r: int = 1


_LOAD_TILE = _LoadTileConfig()


class _TileEmitter:
    """Emits one register tile: produce, finish in registers, hand to the sinks."""

    def __init__(
        self,
        block: BlockEmitter,
        step: Step,
        producer: Any,
        sinks: list[Any],
        others: dict[str, Columns],
        count: int,
        per_super: int,
        pairs: bool,
    ) -> None:
        self.block, self.step, self.producer = block, step, producer
        self.sinks, self.others = sinks, others
        self.count, self.per_super, self.pairs = count, per_super, pairs
        self.params: dict[str, View] = {}
        for op in ([step.producer] if step.producer else []) + list(step.chain):
            if op.opcode == "add":
                continue
            for value in op.operands[1:]:
                if len(value.type.shape) == 1:
                    ref = block.ctx.ref(value)
                    self.params[value.name] = block.ctx.blob.add("vector", "float32", [ref])

    def emit(self, chunk: Expr, start: Expr, supers: list[Expr]) -> None:
        """Emit the tile of one chunk of columns and some super groups of rows."""
        supers = [bind(s) for s in supers]
        groups = [bind(s * self.per_super + p) for s in supers for p in range(self.per_super)]
        parts = CHUNK // self.count
        with loop(parts) as sub:
            first = bind(sub * self.count)
            if isinstance(self.producer, _LoadTile):
                result = None
            else:
                result = self.producer.tile(chunk, first, self.count, supers)
            for j in range(self.count):
                for r in range(0, len(supers), 2 if self.pairs else 1):
                    if result is None:
                        vectors = [self._loaded(start + first + j, groups[r])]
                    elif self.pairs:  # the last group may be alone: it is its own other half
                        halves = [result(j, min(r + k, len(supers) - 1))[0] for k in (0, 1)]
                        vectors = [PACKSSDW_512(*halves)]
                    else:
                        vectors = result(j, r)
                    for p, value in enumerate(vectors):
                        slot = r * self.per_super + p
                        self._deliver(value, first + j, start, groups[slot], slot)
            for sink in self.sinks:
                sink.advance(sub, parts)
        for sink in self.sinks:
            sink.commit(start, groups[0], len(groups))

    def _loaded(self, column: Expr, group: Expr) -> Expr:
        source = self.producer.source
        if source.columns < CHUNK:  # lanes past the last column are computed and dropped
            column = edges.minimum(column, i64(source.columns - 1))
        return bind(self.producer.tile_at(column, group))

    def _deliver(self, value: Expr, column: Expr, start: Expr, group: Expr, slot: int) -> None:
        absolute = bind(start + column)

        def operand(op: Operation, index: int) -> Expr:
            name = op.operands[index].name
            if name in self.params:
                return splat(self.params[name].load(absolute))
            other = self.others[name]
            inside = absolute
            if other.columns < CHUNK:
                inside = edges.minimum(absolute, i64(other.columns - 1))
            return other.view.load(other.index(group, inside), 16)

        if self.step.producer is not None and self.step.producer.opcode == "linear":
            value = linear.bias_and_activation(
                self.step.producer, value, lambda i: operand(self.step.producer, i)
            )
        for op in self.step.chain:
            value = ELEMENTWISE[op.opcode](op, value, lambda i, op=op: operand(op, i))
        value = bind(value)
        columns = self.step.result.type.size(1)
        for sink in self.sinks:
            if isinstance(sink, edges.ColumnsSink) and columns < CHUNK:
                with edges.when(absolute < i64(columns)):
                    sink.put(column, start, group, slot, value)
            else:
                sink.put(column, start, group, slot, value)
