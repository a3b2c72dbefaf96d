"""Recipe keys of the encoder: a discriminated union on `kind`, which other packages can extend.

An encoder is a subclass of `ramify.model.encoders.base.Encoder` with a class of its recipe keys. The encoders of this
package are listed in `KINDS`; another installed package adds its own by an entry point:

    [project.entry-points."ramify.encoders"]
    my_kind = "my_package.module:MyEncoder"
"""

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import Field, ValidationError

from ramify.errors import nearest
from ramify.recipe.base import Keys
from ramify.recipe.validation_errors import mistakes

KINDS = {
    "egnn": "ramify.model.encoders.egnn:EGNN",
    "many_body": "ramify.model.encoders.many_body:ManyBody",
    "painn": "ramify.model.encoders.painn:PaiNN",
    "schnet": "ramify.model.encoders.schnet:SchNet",
    "tensornet": "ramify.model.encoders.tensornet:TensorNet",
}
"""Module and class of each kind. Imported only when a recipe uses it, because encoders need PyTorch."""

GROUP = "ramify.encoders"
"""Entry points of other packages."""

DEFAULT_KIND = "many_body"

TYPICAL_NEIGHBORS = 15.0
"""Average number of neighbours of an atom within 5 Å, over molecules and crystals."""


class EncoderOptions(Keys):
    """The shared encoder. The keys below are common to all kinds; each kind has further keys."""

    kind: str
    """Architecture."""
    layers: int = Field(4, ge=1)
    """Number of message passing layers."""
    width: int = Field(128, ge=1)
    """Scalar features per atom."""
    elements: Literal["periodic-table", "random", "features"] = "periodic-table"
    """Embedding of the elements: trained, and initialised from period, group and covalent radius, so that rare elements
    begin close to related ones; trained, and initialised at random; or only a linear map of these features, for
    datasets with hardly more materials than elements."""
    radial: int = Field(8, ge=1)
    """Size of the radial basis."""
    cutoff: float = Field(5.0, gt=0)
    """Å."""
    max_neighbors: int | None = Field(20, ge=1)
    """Maximum number of neighbours of an atom: where there are more, an adaptive cutoff smaller than `cutoff` applies;
    null keeps all neighbours within the cutoff."""

    @property
    def typical_neighbors(self) -> float:
        """Typical number of neighbours: sums over neighbours are divided by its square root."""
        return min(TYPICAL_NEIGHBORS, self.max_neighbors or TYPICAL_NEIGHBORS)


def encoder_kinds() -> list[str]:
    """All available kinds: those of this package, then those of other packages."""
    return [*KINDS, *sorted(set(_outside()) - set(KINDS))]


def encoder_class(kind: str) -> Any:
    """Imports the class of a kind, a subclass of `ramify.model.encoders.base.Encoder`.

    Raises:
        ValueError: an unknown kind, one that two packages define, or one that cannot be imported.
    """
    outside = _outside().get(kind, [])
    if len(outside) + (kind in KINDS) > 1:
        owners = [*(["ramify"] if kind in KINDS else []), *map(_owner, outside)]
        raise ValueError(
            f"model.encoder.kind: '{kind}' is defined more than once, by {', '.join(owners)}; uninstall all but one"
        )
    if kind in KINDS:
        module, _, name = KINDS[kind].partition(":")
        return getattr(importlib.import_module(module), name)
    if not outside:
        kinds = encoder_kinds()
        raise ValueError(f"model.encoder.kind: '{kind}' is unknown{nearest(kind, kinds)}; accepted: {', '.join(kinds)}")
    (entry,) = outside
    try:
        found = entry.load()
    except Exception as error:  # any exception of a third-party module
        raise ValueError(
            f"model.encoder.kind: '{kind}' cannot be imported from {entry.value} of the package {_owner(entry)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, EncoderOptions)):
        raise ValueError(
            f"model.encoder.kind: '{kind}' is {entry.value} of the package {_owner(entry)}, which has no class "
            "`Options` derived from ramify.recipe.EncoderOptions; see docs/encoders.md"
        )
    return found


def encoder_options(entry: Any) -> EncoderOptions:
    """Validates the keys of an encoder by the model of its kind; without `kind`, of `many_body`.

    Raises:
        ValueError: an unknown kind, or invalid keys; one line for each.
    """
    if isinstance(entry, EncoderOptions):
        return entry
    if not isinstance(entry, Mapping):
        raise ValueError(f"model.encoder: Input should be a valid dictionary, found {entry!r:.80}")
    kind = entry.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str):
        raise ValueError(f"model.encoder.kind: found {kind!r:.80}; accepted: {', '.join(encoder_kinds())}")
    options: type[EncoderOptions] = encoder_class(kind).Options
    try:
        return options.model_validate(entry)
    except ValidationError as error:
        found = mistakes(error, options, "model.encoder.")
        unknown = {str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden" and len(e["loc"]) == 1}
        found += [hint for key in sorted(unknown) if (hint := _other_kinds(key, kind))]
        raise ValueError("\n  ".join(found)) from None


def _other_kinds(key: str, kind: str) -> str:
    """The kinds of this package that have a key which `kind` has not; empty if there are none."""
    owners = [other for other in KINDS if other != kind and key in encoder_class(other).Options.model_fields]
    if not owners:
        return ""
    return f"model.encoder.{key} is a key of {', '.join(owners)}; for one of these write model.encoder.kind"


def clear_cache() -> None:
    """Clears the cache of entry points, for packages installed while the program runs."""
    _outside.cache_clear()


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


@cache
def _outside() -> dict[str, list[EntryPoint]]:
    """Entry points of other packages by kind."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found
