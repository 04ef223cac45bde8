"""Tells what a given path is (artifact, IR module, exported or stored torch model); reads it."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lutcc.cli.arrays import existing_file
from lutcc.errors import ConvertError, FrontendError, InputError, ParseError, UsageError, suggest

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from lutcc import ir

Kind = Literal["artifact", "ir", "pt2", "hf"]

KINDS: dict[Kind, str] = {
    "artifact": "an artifact",
    "ir": "an IR module",
    "pt2": "an exported torch model",
    "hf": "a model in Hugging Face's layout",
}
"""What messages call each kind of file."""


def kind_of(path: Path) -> Kind:
    """Tell what a file is from its content; the suffix only decides for damaged files.

    Raises
    ------
    UsageError
        When it is none of the four.
    """
    if path.is_dir():
        if (path / "manifest.json").is_file():
            return "artifact"
        if (path / "config.json").is_file():
            return "hf"
        raise UsageError(
            f"{path} is a folder without manifest.json (an artifact) or config.json (Hugging Face)",
            fix="name an artifact, a .ir or a .pt2 file, or a folder of the latter kind",
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "manifest.json" in names:
            return "artifact"
        if any(name.endswith("archive_format") or "/models/" in name for name in names):
            return "pt2"
    by_suffix: dict[str, Kind] = {
        ".lutcc": "artifact",
        ".zip": "artifact",
        ".ir": "ir",
        ".pt2": "pt2",
    }
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    raise UsageError(
        f"{path.name!r} is no artifact, IR module (.ir) or exported model (.pt2)",
        fix="torch.export.save writes .pt2, `lutcc fit` .ir, `lutcc compile` artifacts",
    )


def read_module(path: Path) -> ir.Module:
    """Parse an IR module.

    Raises
    ------
    ParseError
        With file, line and column.
    """
    from lutcc import ir

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ParseError("is not text", where=str(path), fix="name a .ir file") from error
    try:
        return ir.parse(text)
    except ParseError as error:
        raise ParseError(error.what, where=f"{path}:{error.where or ''}", fix=error.fix) from error


def read_model(path: Path, kind: Kind) -> Any:
    """Read an artifact's module, an IR module or an exported program: what can be tuned.

    Raises
    ------
    UsageError
        For a folder in Hugging Face's layout.
    """
    if kind == "hf":
        raise UsageError(
            f"{str(path)!r} is {KINDS[kind]}, which has no kernels yet",
            where="MODEL",
            fix="trace it first, torch.export.export, and torch.export.save it as .pt2",
        )
    if kind == "artifact":
        import lutcc

        return lutcc.Artifact.read(path).module
    return read_module(path) if kind == "ir" else read_exported(path)


def read_exported(path: Path) -> ExportedProgram:
    """Load a .pt2 file.

    Raises
    ------
    FrontendError
        When torch cannot read it.
    """
    import torch

    import lutcc.ops  # noqa: F401 - registers torch.ops.lutcc, which the graph may call

    silenced = logging.root.manager.disable
    logging.disable(logging.ERROR)  # torch logs a traceback before it raises, and unused symbols
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its zip, JSON and schema readers raise
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise FrontendError(
            f"torch cannot read it: {first[0]}",
            where=str(path),
            fix="write it (again) with torch.export.save, with a torch not newer than this one",
        ) from error
    finally:
        logging.disable(silenced)


def is_factory(text: str) -> bool:
    """Tell whether MODEL names package.module:factory or a built-in model, not a path."""
    return (":" in text or text in BUILT_IN) and not Path(text).exists()


def torch_model(reference: str, weights: str | None) -> nn.Module:
    """Build the model named ``package.module:factory`` or ``digits-mlp`` and load its weights.

    ``digits-mlp`` is the demonstration's network. A factory takes no arguments and returns a
    module; the current folder is searched first, as ``python -m`` does.

    Raises
    ------
    UsageError
        When it cannot be found or is no factory of torch modules.
    ConvertError
        When importing or calling it fails, or the weights do not fit the model.
    """
    from torch import nn

    if reference in BUILT_IN:
        reference = BUILT_IN[reference]
    module_name, colon, name = reference.partition(":")
    if not colon or not name or not module_name:
        raise UsageError(
            f"{reference!r} is not of the form package.module:factory",
            where="MODEL",
            fix=f"or use a built-in one: {suggest(reference, BUILT_IN)}",
        )
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"no module {error.name!r}",
            where=reference,
            fix="run where it can be imported, or set PYTHONPATH",
        ) from error
    except Exception as error:  # whatever the module's own code raises
        raise _failed(f"importing {module_name} fails", reference, error) from error
    finally:
        sys.path.remove("")
    factory = getattr(module, name, None)
    if factory is None:
        raise UsageError(
            f"{module_name} has no {name!r}", where=reference, fix=suggest(name, vars(module))
        )
    called = callable(factory) and not isinstance(factory, nn.Module)
    model = _call(factory, reference) if called else factory
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{reference} gives a {type(model).__name__}, not a torch module", where="MODEL",
            fix="name a function without arguments that returns a torch.nn.Module",
        )  # fmt: skip
    if weights is not None:
        _load_weights(model, existing_file(weights, "--weights"))
    return model.eval()


BUILT_IN = {"digits-mlp": "lutcc.report.digits:mlp"}


def _call(factory: Callable[[], Any], reference: str) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        parameters = ()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if needed:
        raise UsageError(
            f"the factory needs arguments: {', '.join(needed)}",
            where=reference,
            fix="name a function without arguments that returns the model",
        )
    try:
        return factory()
    except Exception as error:  # whatever the user's code raises
        raise _failed("the model factory fails", reference, error) from error


def _failed(what: str, reference: str, error: Exception) -> ConvertError:
    first = str(error).strip().splitlines()[:1]
    return ConvertError(
        ": ".join([what, type(error).__name__, *first]),
        where=reference,
        fix="mend it there; -vv shows the traceback",
    )


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"cannot be read: {error}",
            where=str(path),
            fix="write it with safetensors.torch.save_file(model.state_dict(), path)",
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        known = ", ".join(list(model.state_dict())[:8])
        raise ConvertError(
            str(error), where=str(path), fix=f"the model's tensors are {known}, ..."
        ) from error


def describe_specs(specs: Any) -> str:
    """Return the signature of inputs or outputs as text."""
    return ", ".join(map(str, specs))
