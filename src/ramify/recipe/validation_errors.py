"""Messages for errors in a recipe: the key, the value found, the accepted values."""

from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ramify.errors import nearest


def mistakes(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per error: key, value found, accepted values.

    Args:
        error: error of pydantic.
        model: model of the keys.
        prefix: prefix of every key.
    """
    lines: dict[str, str] = {}
    for mistake in error.errors():
        key, found = prefix + _place(mistake), f"{mistake['input']!r:.80}"
        if mistake["type"] == "extra_forbidden":
            accepted = _keys_at(model, mistake["loc"][:-1])
            hint = nearest(str(mistake["loc"][-1]), accepted)
            line = f"{key}: unknown key{hint}; accepted: {', '.join(accepted)}"
        elif mistake["type"] == "missing":
            line = f"{key}: missing"
        elif mistake["type"] == "value_error":
            line = str(mistake["ctx"]["error"])
        elif key in lines:  # another type accepted for the key
            line = lines[key].replace(", found", f" or {mistake['msg'].removeprefix('Input should be ')}, found", 1)
        else:
            line = f"{key}: {mistake['msg']}, found {found}"
        lines[key] = line
    # for a key that accepts a word or a group, errors inside the group are sufficient
    return [line for key, line in lines.items() if not any(other.startswith(f"{key}.") for other in lines)]


def _place(mistake: ErrorDetails) -> str:
    """Dotted key of an error, without the names of types that pydantic adds for unions."""
    parts = [str(part) for part in mistake["loc"] if "[" not in str(part)]
    return ".".join(parts[:-1] if mistake["type"] == "string_type" and parts[-1] == "str" else parts)


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Accepted keys at a location inside nested models."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
