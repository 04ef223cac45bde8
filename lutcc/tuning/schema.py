"""A record as a line of JSON: checked by ``record.schema.json`` on its way in and out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lutcc.errors import LogError
from lutcc.tuning.records import SCHEMA_VERSION, Record


class InvalidRecord(ValueError):
    """A line is no record; the message says why."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 7) of a record.

    Examples
    --------
    >>> schema()["properties"]["schema"]["enum"]
    [1]
    """
    return json.loads(Path(__file__).with_name("record.schema.json").read_text(encoding="utf-8"))


@functools.cache
def _validator(detailed: bool) -> Callable[[Any], Any]:
    """Return a check; one whose errors say what and where takes 30 ms longer to make."""
    import fastjsonschema

    return fastjsonschema.compile(
        schema(), use_default=False, use_formats=False, detailed_exceptions=detailed
    )


def to_line(record: Record) -> str:
    """Return a record as one line, without its newline.

    Raises
    ------
    LogError
        For a record that breaks the schema, such as one with a number that is not finite.
    """
    data = record.to_json()
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        _check(json.loads(text))
    except (TypeError, ValueError) as error:
        raise LogError(
            f"the record of {record.workload.op} cannot be logged: {error}",
            where=f"session {record.session}",
            fix="log finite numbers and plain values only",
        ) from error
    return text


def from_line(line: str | bytes) -> Record:
    """Return the record that a line holds.

    Raises
    ------
    InvalidRecord
        For anything but a record.
    LogError
        For a record of another schema version.
    """
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except InvalidRecord:
        raise
    except RecursionError:
        raise InvalidRecord("nested too deeply") from None
    except ValueError as error:  # JSON and Unicode errors
        what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InvalidRecord(f"not JSON, or cut short ({what})") from None
    if not isinstance(data, dict):
        raise InvalidRecord("not a JSON object")
    version = data.get("schema")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise LogError(
            f"a record has schema {version}, this lutcc reads {SCHEMA_VERSION}",
            fix="upgrade lutcc" if newer else "tune again: records that old are no longer read",
        )
    _check(data)
    return Record.from_json(data)


def _refuse_constant(name: str) -> Any:
    raise InvalidRecord(f"{name} is no JSON number")


def _check(data: Mapping[str, Any]) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(False)(data)
    except JsonSchemaValueException:
        try:
            _validator(True)(data)
        except JsonSchemaValueException as error:
            raise InvalidRecord(_shorten(error)) from None
    if any(isinstance(value, float) for value in data["config"].values()):
        raise InvalidRecord("config: a knob's value is a float")


def _shorten(error: Any) -> str:
    """Return what is wrong and where, without the whole rule."""
    path = ".".join(str(step) for step in error.path[1:]) or "record"
    what = error.message.removeprefix(error.name or "").strip()
    if error.rule == "required":
        missing = sorted(set(error.rule_definition) - set(error.value))
        what = f"leaves out {', '.join(missing)}"
    return f"{path}: {what}"[:200]
