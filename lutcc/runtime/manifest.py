"""``manifest.json``: what an artifact says of itself, read strictly and written canonically."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lutcc import __version__
from lutcc.errors import ArtifactError
from lutcc.runtime import cpu
from lutcc.runtime.schema import Node, parse_json
from lutcc.runtime.signature import SYMBOL, TensorSpec, spec_from_node

FORMAT = "lutcc-artifact"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
MODULE = "module.ir"

#: What ``work_per_row`` may count.
WORK = ("lookups", "flops", "comparisons", "bytes", "table_bytes")

#: No manifest is longer; a longer one is not read.
MAX_MANIFEST_BYTES = 32 * 2**20
MAX_FILE_BYTES = 2**40

# One folder, no separators, no leading dot: a name of this form cannot leave the artifact.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z.+!_\-]{1,64}")
_FLAG = re.compile(r"[a-z0-9_.\-]{1,64}")
_FIX = "the manifest is damaged or was edited; make the artifact again with lutcc.compile and save"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the artifact: its size in bytes and sha256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileEntry:
        """Return the entry of a file with these contents."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Variant:
    """The kernels for one ISA level: file, required CPU features, and how they are called.

    ``program`` is the Program (JSON) of look-up kernels, ``packed`` the file with its constants as
    the kernels read them, where the artifact has one; ``params`` names the constants that a Relax
    executable takes after its inputs.
    """

    isa: str
    file: str
    features: tuple[str, ...]
    program: dict[str, Any] | None = None
    params: tuple[str, ...] = ()
    packed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        out = {"isa": self.isa, "file": self.file, "features": list(self.features)}
        if self.packed is not None:
            out["packed"] = self.packed
        if self.program is None:
            return {**out, "params": list(self.params)}
        return {**out, "program": self.program}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything in ``manifest.json``. ``kind`` is "ir" (one entry function) or "relax" (a VM)."""

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    files: Mapping[str, FileEntry]
    lutcc_version: str
    versions: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    work_per_row: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the file's bytes; equal manifests give equal bytes."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "lutcc_version": self.lutcc_version,
            "kind": self.kind,
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "variants": [variant.to_json() for variant in self.variants],
            "files": {
                name: {"size": entry.size, "sha256": entry.sha256}
                for name, entry in sorted(self.files.items())
            },
            "modules": list(self.modules),
            "work_per_row": dict(self.work_per_row),
            "versions": dict(self.versions),
            "extra": dict(self.extra),
        }
        try:
            body["digest"] = digest(body)
            return json.dumps(body, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"the manifest cannot be written as JSON: {error}",
                where=MANIFEST,
                fix="pass only strings, finite numbers, booleans, lists and dictionaries in extra",
            ) from error


def packed_nbytes(program: Mapping[str, Any]) -> int:
    """Return the bytes of a program's packed constants: at least a cache line."""
    return max(program["blob_nbytes"], 64)


def digest(body: Mapping[str, Any]) -> str:
    """Return the sha256 of the manifest's canonical JSON without its ``digest`` key."""
    rest = {key: value for key, value in body.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(data: bytes, where: str) -> Manifest:
    """Read and check ``manifest.json``.

    Raises
    ------
    ArtifactError
        When it is no manifest of a version this lutcc reads, or breaks the schema; the message
        names the JSON path.
    """
    root = parse_json(data, where=where, fix=_FIX)
    _check_version(root)
    top = root.fields(
        (
            "format",
            "format_version",
            "lutcc_version",
            "kind",
            "inputs",
            "outputs",
            "variants",
            "files",
            "modules",
            "work_per_row",
            "versions",
            "extra",
            "digest",
        )
    )
    try:
        actual = digest(root.as_object())
    except (ValueError, RecursionError) as error:
        root.fail(f"cannot be hashed: {error}")
    if top["digest"].as_str(_SHA256, kind="a sha256 in lower-case hex") != actual:
        top["digest"].fail("does not fit the rest of the manifest: it was changed after writing")
    kind = top["kind"].as_choice(("ir", "relax"))
    files = dict(_file(name, node, top["files"]) for name, node in top["files"].items())
    inputs = tuple(spec_from_node(node) for node in top["inputs"].as_list(at_least=1, at_most=256))
    outputs = tuple(
        spec_from_node(node) for node in top["outputs"].as_list(at_least=1, at_most=256)
    )
    variants = tuple(_variant(n, kind) for n in top["variants"].as_list(at_least=1, at_most=64))
    work = top["work_per_row"].fields((), WORK)
    modules = tuple(n.as_str(FILE_NAME, kind="a file name") for n in top["modules"].as_list())
    manifest = Manifest(
        kind=kind,
        inputs=inputs,
        outputs=outputs,
        variants=variants,
        files=files,
        lutcc_version=top["lutcc_version"].as_str(),
        versions={name: node.as_str() for name, node in top["versions"].items()},
        modules=modules,
        work_per_row={key: work[key].as_int(0, 2**62) for key in work},
        extra=top["extra"].as_object(),
    )
    _check_whole(manifest, top)
    return manifest


def _check_version(root: Node) -> None:
    head = root.fields(("format", "format_version"), open_=True)
    if head["format"].value != FORMAT:
        head["format"].fail(f"expected {FORMAT!r}, got {head['format'].value!r}")
    version = head["format_version"].as_int(0, 2**31)
    writer = _writer(root)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"$.format_version: this artifact has format {version}, written by {writer}; this "
            f"lutcc, {__version__}, reads {FORMAT_VERSION}",
            where=root.where,
            fix=f"upgrade lutcc (pip install --upgrade lutcc) to that of {writer}, or compile the "
            "model again with this lutcc",
        )
    if version < FORMAT_VERSION:
        raise ArtifactError(
            f"$.format_version: format {version}, written by {writer}, is no longer read (this "
            f"lutcc, {__version__}, reads {FORMAT_VERSION})",
            where=root.where,
            fix=f"compile the model again with this lutcc, or load it with {writer}",
        )


def _writer(root: Node) -> str:
    """Return which lutcc wrote a manifest of any version, as far as it says so."""
    text = root.as_object().get("lutcc_version")
    if isinstance(text, str) and _VERSION.fullmatch(text):
        return f"lutcc {text}"
    return "an unknown version of lutcc"


def _file(name: str, node: Node, files: Node) -> tuple[str, FileEntry]:
    if not FILE_NAME.fullmatch(name) or name == MANIFEST:
        files.fail(
            f"{name!r} is no file name an artifact may hold (letters, digits, '_', '.', '-')"
        )
    fields = node.fields(("size", "sha256"))
    return name, FileEntry(
        fields["size"].as_int(0, MAX_FILE_BYTES),
        fields["sha256"].as_str(_SHA256, kind="a sha256 in lower-case hex"),
    )


def _variant(node: Node, kind: str) -> Variant:
    special = "program" if kind == "ir" else "params"
    optional = ("packed",) if kind == "ir" else ()
    fields = node.fields(("isa", "file", "features", special), optional)
    isa = fields["isa"].as_choice(cpu.ISA_LEVELS)
    file = fields["file"].as_str(FILE_NAME, kind="a file name")
    features = tuple(n.as_str(_FLAG, kind="a CPU flag") for n in fields["features"].as_list())
    if kind == "ir":
        packed = fields.get("packed")
        name = None if packed is None else packed.as_str(FILE_NAME, kind="a file name")
        return Variant(isa, file, features, _program(fields["program"], isa), packed=name)
    params = tuple(n.as_str() for n in fields["params"].as_list())
    return Variant(isa, file, features, params=params)


def _program(node: Node, isa: str) -> dict[str, Any]:
    """Check what the runtime reads of a Program; its other keys belong to the code generator."""
    fields = node.fields(
        (
            "isa",
            "features",
            "entry",
            "inputs",
            "outputs",
            "blob",
            "blob_nbytes",
            "workspace",
            "kernels",
        ),
        open_=True,
    )
    if fields["isa"].as_str() != isa:
        fields["isa"].fail(f"expected {isa!r} as in the variant, got {fields['isa'].value!r}")
    for flag in fields["features"].as_list():
        flag.as_str(_FLAG, kind="a CPU flag")
    fields["entry"].as_str(SYMBOL, kind="an identifier")
    for key in ("inputs", "outputs"):
        for tensor in fields[key].as_list(at_least=1, at_most=256):
            spec_from_node(tensor)
    total = fields["blob_nbytes"].as_int(0, MAX_FILE_BYTES)
    for part in fields["blob"].as_list():
        keys = part.fields(("pack", "params", "sources", "offset", "nbytes"), open_=True)
        keys["pack"].as_str()
        keys["params"].as_object()
        for source in keys["sources"].as_list():
            source.as_str()
        end = keys["offset"].as_int(0, MAX_FILE_BYTES) + keys["nbytes"].as_int(0, MAX_FILE_BYTES)
        if end > total:
            part.fail(f"ends at byte {end} of a blob of {total} bytes")
    sizes = fields["workspace"].fields(("per_thread", "per_row", "fixed"), open_=True)
    for key in ("per_thread", "per_row", "fixed"):
        sizes[key].as_int(0, MAX_FILE_BYTES)
    for kernel in fields["kernels"].as_list():
        keys = kernel.fields(("stage", "ops", "config", "source"), open_=True)
        keys["stage"].as_str()
        keys["source"].as_str()
        for op in keys["ops"].as_list():
            op.as_str()
    return node.as_object()


def _check_whole(manifest: Manifest, top: dict[str, Node]) -> None:
    """Check what ties several parts of the manifest together."""
    isas = [variant.isa for variant in manifest.variants]
    if len(set(isas)) != len(isas):
        top["variants"].fail(f"an ISA level occurs twice: {isas}")
    for index, variant in enumerate(manifest.variants):
        if variant.file not in manifest.files:
            top["variants"].fail(f"entry {index} names {variant.file!r}, which is not in $.files")
        if variant.program is None:
            continue
        where = f"$.variants[{index}].program"
        for key, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
            own = [
                spec_from_node(Node(value, f"{where}.{key}", top[key].where, _FIX))
                for value in variant.program[key]
            ]
            if [(s.shape, s.dtype) for s in own] != [(s.shape, s.dtype) for s in specs]:
                top[key].fail(f"differs from {where}.{key}")
        missing = {flag for flag in variant.program["features"]} - set(variant.features)
        if missing:
            top["variants"].fail(f"entry {index} leaves out the CPU flags {sorted(missing)}")
        if variant.packed is None:
            continue
        if variant.packed not in manifest.files:
            top["variants"].fail(f"entry {index} names {variant.packed!r}, which is not in $.files")
        size, expected = manifest.files[variant.packed].size, packed_nbytes(variant.program)
        if size != expected:
            top["variants"].fail(
                f"entry {index}: {variant.packed!r} has {size} bytes, the program says {expected}"
            )
    for name in (*manifest.modules, CONSTANTS):
        if name not in manifest.files:
            top["files"].fail(f"{name!r} is missing")
    used = {variant.file for variant in manifest.variants} | {CONSTANTS, *manifest.modules}
    used |= {variant.packed for variant in manifest.variants if variant.packed is not None}
    for name in manifest.files:
        if name not in used:
            top["files"].fail(f"{name!r} is neither a variant, a module nor the constants")
    names = [spec.name for spec in manifest.inputs]
    if len(set(names)) != len(names):
        top["inputs"].fail(f"two inputs have the same name: {names}")
    known = {symbol for spec in manifest.inputs for symbol in spec.symbols}
    for spec in manifest.outputs:
        unknown = set(spec.symbols) - known
        if unknown and manifest.kind == "ir":
            top["outputs"].fail(f"{spec.name!r} uses symbols of no input: {sorted(unknown)}")
    if manifest.kind == "ir":
        if len(known) > 1:
            top["inputs"].fail(f"more than one symbol: {sorted(known)}")
        if manifest.modules != (MODULE,):
            top["modules"].fail(f"expected [{MODULE!r}]")
