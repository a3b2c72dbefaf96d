"""Recipe keys of the encoder: a discriminated union on `kind`, which other packages can extend.

An encoder is a subclass of `ramify.model.encoders.base.Encoder` with a class of its recipe keys. The encoders of this
package are listed in `KINDS`, and their keys are in this module; another installed package adds its own by an entry
point:

    [project.entry-points."ramify.encoders"]
    my_kind = "my_package.module:MyEncoder"
"""

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ramify.errors import nearest
from ramify.recipe.base import Keys
from ramify.recipe.validation_errors import mistakes

KINDS = {
    "egnn": "ramify.model.encoders.egnn:EGNN",
    "many_body": "ramify.model.encoders.many_body:ManyBody",
    "painn": "ramify.model.encoders.painn:PaiNN",
    "pyg": "ramify.model.encoders.pyg.encoder:PyG",
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


class EGNNOptions(EncoderOptions):
    """EGNN (Satorras et al., arXiv:2102.09844) with vector channels."""

    kind: Literal["egnn"] = "egnn"
    vector_channels: int = Field(32, ge=1)
    """Vector features per atom."""
    message_layers: Literal[1, 2] = 2
    """Activated layers of the message network on every edge: 2 as in the EGNN paper, 1 leaves out the second, whose
    work (edges x width²) dominates."""


class ManyBodyOptions(EncoderOptions):
    """Many-body message passing in the manner of the atomic cluster expansion (ACE), in Cartesian components."""

    kind: Literal["many_body"] = "many_body"
    layers: int = Field(2, ge=1)
    """Rounds of message passing."""
    channels: int = Field(64, ge=1)
    """Channels of vectors and tensors on atoms."""
    l_max: Literal[0, 1, 2] = 2
    """Highest rank of the sums over neighbours: 0 scalars, 1 also vectors, 2 also tensors."""
    body_order: Literal[2, 3, 4] | None = None
    """Number of atoms that a product in one layer correlates, at most `l_max` + 2; null: `l_max` + 2."""
    passed: int = Field(16, ge=0)
    """Vector and tensor channels that atoms send to their neighbours from the second layer on; 0: scalars only."""
    gates: bool = True
    """Whether the receiver scales the sums over its neighbours."""
    vector_channels: int = Field(16, ge=1)
    """Vectors for direct forces, at most `channels`; there are none with `l_max: 0`."""

    @model_validator(mode="after")
    def _fit(self) -> "ManyBodyOptions":
        if self.body_order is not None and self.body_order > self.l_max + 2:
            raise ValueError(
                f"model.encoder.body_order: {self.body_order} needs l_max of at least {self.body_order - 2}, found "
                f"{self.l_max}; leave it out for {self.l_max + 2}"
            )
        if self.vector_channels > self.channels:
            raise ValueError(
                f"model.encoder.vector_channels: {self.vector_channels} are more than channels: {self.channels}"
            )
        return self

    @property
    def order(self) -> int:
        """The body order."""
        return self.body_order or self.l_max + 2


class PaiNNOptions(EncoderOptions):
    """PaiNN (Schütt et al., arXiv:2102.03150): vectors with as many channels as scalars, `width`."""

    kind: Literal["painn"] = "painn"


class PyGOptions(EncoderOptions):
    """Layers of PyTorch Geometric (`pip install 'ramify[pyg]'`) with edge features from the radial basis. Only `visnet`
    has vectors: with the others `force_head.kind` must be `conservative`."""

    kind: Literal["pyg"] = "pyg"
    layer: Literal["cgcnn", "dimenet++", "gatv2", "gine", "mfc", "pna", "sage", "schnet", "visnet"]
    """Layer, or network of layers; docs/encoders.md describes each."""
    heads: int = Field(4, ge=1)
    """Attention heads of `gatv2` and `visnet`; they divide `width`."""

    @model_validator(mode="after")
    def _fit(self) -> "PyGOptions":
        if self.layer in ("gatv2", "visnet") and self.width % self.heads:
            raise ValueError(f"model.encoder.heads: {self.heads} does not divide width: {self.width}")
        return self


class SchNetOptions(EncoderOptions):
    """SchNet (Schütt et al., arXiv:1706.08566). It has no vectors: `force_head.kind` must be `conservative`."""

    kind: Literal["schnet"] = "schnet"
    radial: int = Field(32, ge=2)
    """Gaussians from 0 to the cutoff."""


class TensorNetOptions(EncoderOptions):
    """TensorNet (Simeon & De Fabritiis, arXiv:2306.06482): a 3 x 3 matrix per atom and channel."""

    kind: Literal["tensornet"] = "tensornet"
    layers: int = Field(2, ge=1)
    """Rounds of message passing."""
    channels: int = Field(64, ge=1)
    """Matrices per atom."""
    vector_channels: int = Field(16, ge=1)
    """Vector features per atom, for direct forces."""


OPTIONS: dict[str, type[EncoderOptions]] = {
    str(options.model_fields["kind"].default): options
    for options in (EGNNOptions, ManyBodyOptions, PaiNNOptions, PyGOptions, SchNetOptions, TensorNetOptions)
}
"""The keys of each kind of `KINDS`; they are here so that a recipe is read without PyTorch."""


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


def options_class(kind: str) -> type[EncoderOptions]:
    """The recipe keys of a kind. Imports an encoder of another package only; raises as `encoder_class`."""
    if kind in OPTIONS and kind not in _outside():
        return OPTIONS[kind]
    options: type[EncoderOptions] = encoder_class(kind).Options
    return options


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
    options = options_class(kind)
    try:
        return options.model_validate(entry)
    except ValidationError as error:
        found = mistakes(error, options, "model.encoder.")
        unknown = {str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden" and len(e["loc"]) == 1}
        found += [hint for key in sorted(unknown) if (hint := _other_kinds(key, kind))]
        raise ValueError("\n  ".join(found)) from None


def _other_kinds(key: str, kind: str) -> str:
    """The kinds of this package that have a key which `kind` has not; empty if there are none."""
    owners = [other for other in KINDS if other != kind and key in OPTIONS[other].model_fields]
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
