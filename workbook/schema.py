"""From YAML to checked values: an unknown key, a missing one or a wrong type is an error that lists what is valid."""

import dataclasses
import types
import typing


class ProfileError(ValueError):
    """A profile or the registry has an unknown key or name, lacks one or contradicts itself; the message says how."""


def build(kind, data, where: str):
    """Turn plain YAML into the annotated type, refusing keys that it does not have.

    null is the value of a field that may be None; any other field is then as if it were not given.

    Raises:
        ProfileError: at `where`, a dotted path for the reader.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return None if data is None else build(typing.get_args(kind)[0], data, where)
    if typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
        return {k: build(typing.get_args(kind)[1], v or {}, f"{where}.{k}") for k, v in data.items()}
    if not dataclasses.is_dataclass(kind):
        plain = typing.get_origin(kind) or kind
        if plain is float and isinstance(data, int) and not isinstance(data, bool):
            data = float(data)
        if not isinstance(data, plain) or (isinstance(data, bool) and plain is not bool):
            raise ProfileError(f"{where}: expected {plain.__name__}, found {data!r}")
        return data
    if not isinstance(data, dict):
        raise ProfileError(f"{where}: expected a mapping, found {data!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise ProfileError(f"{where}: unknown key {', '.join(unknown)}; valid keys: {', '.join(fields)}")
    hints = typing.get_type_hints(kind)
    data = {k: v for k, v in data.items() if v is not None or types.NoneType in typing.get_args(hints[k])}
    missing = [
        n for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ProfileError(f"{where}: missing key {', '.join(missing)}")
    values = {k: build(hints[k], v, f"{where}.{k}") for k, v in data.items()}
    try:
        return kind(**values)
    except ProfileError:
        raise
    except ValueError as error:
        raise ProfileError(f"{where}: {error}") from error


def merge(base: dict, change: dict) -> dict:
    """`base` with the leaves of `change` laid over it; null removes a section; `runs` is replaced as a whole."""
    out = dict(base)
    for key, value in change.items():
        if value is None and isinstance(out.get(key), dict):
            del out[key]
        elif isinstance(value, dict) and isinstance(out.get(key), dict) and key != "runs":
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def known(what: str, name: str, valid, where: str) -> None:
    """Raise ProfileError, with the valid names, unless `name` is one of them."""
    if name not in valid:
        raise ProfileError(f"{where}: no {what} {name!r}; there are: {', '.join(valid)}")
