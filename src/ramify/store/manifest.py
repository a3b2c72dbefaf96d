"""`manifest.json` of a store: everything about a prepared dataset but the structures themselves."""

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ramify.errors import RamifyError
from ramify.files import content_sha256, parse_json
from ramify.untrusted import Element, parsed

SplitName = Literal["train", "val", "test"]
FORMAT: Literal["ramify-store"] = "ramify-store"
VERSION = 2
"""1: reference energies with a ridge were drawn towards zero, not towards those of kindred elements."""
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class ManifestEntry(BaseModel):
    """One entry of the manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitCounts(ManifestEntry):
    """Size of one split."""

    structures: int
    atoms: int
    groups: int


class Labels(ManifestEntry):
    """Number of structures that carry each label; further labels (`ramify.labels`) only where there are any."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, int]

    energy: int
    forces: int
    stress: int

    @property
    def counts(self) -> dict[str, int]:
        """By label."""
        return self.model_dump()


class References(ManifestEntry):
    """Reference energies, fitted on the training split (see `ramify.references`)."""

    energies: dict[Element, float]
    """eV per atom of each element."""
    structures: int
    """Number of structures fitted on."""
    residual_mae: float
    """eV/atom on the training split: what predicting the references alone gives there."""
    rank: int
    """Independent compositions among these; below the number of elements, of all that fit equally well those nearest
    the mean energy per atom were taken."""


class LabelStatistics(ManifestEntry):
    """A further label on the training split, in its unit of errors."""

    mean: float
    mad: float
    """Mean absolute deviation from the mean: the error of predicting the mean."""


class Statistics(ManifestEntry):
    """Scales of the labels; on the training split unless it says otherwise; null where the label is absent."""

    energy_std: float
    """eV/atom, standard deviation of the energy per atom after references."""
    energy_mae: float
    """eV/atom, mean absolute energy per atom after references: the trivial predictor's error."""
    forces_rms: float | None
    """eV/Å per component."""
    forces_mae: float | None
    """eV/Å per component: the error of predicting zero."""
    mean_atoms: float
    """Atoms per structure."""
    max_force: float | None
    """eV/Å, largest norm of a force in any split."""
    min_distance: float | None
    """Å, closest two atoms in any split; null where every structure is one isolated atom."""
    labels: dict[str, LabelStatistics] = {}
    """Of further labels; not written where there are none."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not content["labels"]:
            del content["labels"]
        return content


class Consistency(ManifestEntry):
    """Energy-force consistency (see `ramify.prepare.checks.consistency`); null where too few close pairs were found."""

    slope: float | None
    pairs: int
    correlation: float | None


class Finding(ManifestEntry):
    """Something about a dataset that whoever prepares it should know."""

    text: str
    """What was found."""
    fix: str
    """The recipe key that mends it."""


class Conflicts(ManifestEntry):
    """Equal geometries with other labels (see `ramify.prepare.checks.conflicts`)."""

    geometries: int
    """Geometries that occur with different labels."""
    structures: int
    """Records that have one of these."""
    energy: float
    """eV/atom, the largest difference of two energies of one geometry."""
    forces: float | None
    """eV/Å, the largest difference of a force; null without forces."""


class SourceFile(ManifestEntry):
    """An original file, its path as the recipe resolves it."""

    path: str
    bytes: int
    sha256: str


class Column(ManifestEntry):
    """One `.npy` file of the store; the checksum is of the whole file."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class Versions(ManifestEntry):
    """What wrote the store."""

    ramify: str
    numpy: str
    python: str


class Manifest(ManifestEntry):
    """`manifest.json`."""

    format: Literal["ramify-store"] = FORMAT
    version: int = VERSION
    dataset: str
    theory: str
    """Level of theory."""
    options: dict[str, Any]
    """The dataset's recipe entry with every default filled in."""
    splits: dict[SplitName, SplitCounts]
    elements: dict[Element, dict[SplitName, int]]
    """Number of atoms of each element in each split."""
    labels: Labels
    references: References
    statistics: Statistics
    consistency: Consistency
    dropped: dict[str, int]
    """Records left out, by reason; `quarantine.jsonl` names them."""
    conflicts: Conflicts | None = None
    """Equal geometries with other labels; null where there are none."""
    findings: tuple[Finding, ...] = ()
    """What `ramify prepare` warned of."""
    remarks: dict[str, int] = {}
    """Structures in the store (before splitting) of which something must be known, by what it is: a label left out, or
    one that is doubtful; `quarantine.jsonl` names them."""
    read: int
    """Records read: those in the store and those dropped."""
    moved_to_train: list[str]
    """Groups that the hash would have put elsewhere, but which hold elements that training would then not see."""
    shared_groups: int = 0
    """Groups that stand in more than one split: only where the files bring their own split."""
    sources: list[SourceFile]
    columns: dict[str, Column]
    blocks: dict[str, list[int]] | None = None
    """Checksums of each column's blocks of rows (see `ramify.store.blocks`); null in stores written before there were
    any, which cannot be checked in parts."""
    names_sha256: str
    """Checksum of `names.json`."""
    versions: Versions

    @property
    def structures(self) -> int:
        """Number of structures in all splits."""
        return sum(split.structures for split in self.splits.values())

    @property
    def atoms(self) -> int:
        """Number of atoms in all splits."""
        return sum(split.atoms for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """As plain data for JSON. Keys that were added later are left out where they hold their default, so that a
        manifest of before stays the same to the byte, and so does its checksum."""
        content = self.model_dump(mode="json")
        for key in ADDED_LATER:
            if getattr(self, key) == type(self).model_fields[key].default:
                del content[key]
        return content

    @property
    def sha256(self) -> str:
        """Checksum of what it says."""
        return content_sha256(self.to_json())


ADDED_LATER: tuple[str, ...] = ("conflicts", "findings", "remarks")
"""Keys of `Manifest` that stores of version 2 were once written without."""

REBUILD = "prepare the dataset again with `ramify prepare RECIPE --force`"


class Described(Protocol):
    """A store, opened or not."""

    path: Path
    manifest: Manifest


def check_matches(store: Described, options: BaseModel) -> None:
    """Refuses a store that was prepared with other options than the recipe now states.

    Args:
        store: of the dataset.
        options: the dataset's recipe entry.

    Raises:
        RamifyError: naming each key, what the store was prepared with and what the recipe says.
    """
    stated = options.model_dump(mode="json")
    try:
        used = type(options).model_validate(store.manifest.options).model_dump(mode="json")
    except ValidationError:  # another format, or keys that it no longer has
        used = store.manifest.options
    differing = [key for key in (*stated, *(k for k in used if k not in stated)) if stated.get(key) != used.get(key)]
    if differing:
        changes = "; ".join(f"{key}: prepared with {used.get(key)!r}, now {stated.get(key)!r}" for key in differing)
        raise RamifyError(
            f"the store {store.path} was prepared with other options ({changes})",
            fix="run `ramify prepare RECIPE --force` to make it anew, or name another `stores` folder",
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the store in `folder`.

    Raises:
        RamifyError: there is no store, its manifest is damaged, or another version wrote it.
    """
    path = folder / "manifest.json"
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise RamifyError(f"{folder}: no store here", fix="run `ramify prepare RECIPE` first") from None
    except (ValueError, OSError) as error:
        raise RamifyError(f"{path}: not readable as a manifest ({error})", fix=REBUILD) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RamifyError(f"{path}: not the manifest of a store", fix=REBUILD)
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise RamifyError(
            f"{path}: the store has version {version}, this program reads up to {VERSION}",
            fix="update ramify, or prepare the dataset again with `ramify prepare RECIPE --force`",
        )
    if isinstance(version, int) and version < VERSION:
        raise RamifyError(f"{path}: the store has version {version}, this program reads {VERSION}", fix=REBUILD)
    return parsed(Manifest, content, path, fix=REBUILD)
