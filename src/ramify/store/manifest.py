"""`manifest.json` of a store: all metadata of a prepared dataset."""

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ramify.errors import RamifyError
from ramify.files import content_sha256, parse_json
from ramify.untrusted import Element, check_version, parsed

SplitName = Literal["train", "val", "test"]
FORMAT: Literal["ramify-store"] = "ramify-store"
VERSION = 3
"""Version 3: columns `charge` and `spin`. Version 1: reference energies with a ridge were regularised towards zero, not
towards those of related elements."""
WITHOUT_STATES = 2
"""Version of stores without charge and spin, which older programs can read."""
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
    """eV/atom on the training split: mean absolute error of predicting the references alone."""
    rank: int
    """Number of independent compositions. If it is smaller than the number of elements, the fit is not unique, and the
    solution closest to the mean energy per atom was taken."""


class LabelStatistics(ManifestEntry):
    """A further label on the training split, in its unit of errors."""

    mean: float
    mad: float
    """Mean absolute deviation from the mean: the error of predicting the mean."""


class Statistics(ManifestEntry):
    """Scales of the labels, on the training split unless stated otherwise; null where the label is absent."""

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
    energy_mean: float = 0.0
    """eV/atom, mean energy per atom after stated references; not written, and 0, where references are fitted."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not content["labels"]:
            del content["labels"]
        if not content["energy_mean"]:
            del content["energy_mean"]
        return content


class Consistency(ManifestEntry):
    """Energy-force consistency (see `ramify.prepare.checks.consistency`); null where too few close pairs were found."""

    slope: float | None
    pairs: int
    correlation: float | None


class Finding(ManifestEntry):
    """A possible problem of a dataset."""

    text: str
    """Description of the problem."""
    fix: str
    """Recipe key that corrects it."""


class Conflicts(ManifestEntry):
    """Equal geometries with different labels (see `ramify.prepare.checks.conflicts`)."""

    geometries: int
    """Geometries that occur with different labels."""
    structures: int
    """Records with one of these geometries."""
    energy: float
    """eV/atom, the largest difference of two energies of one geometry."""
    forces: float | None
    """eV/Å, the largest difference of a force; null without forces."""


class StateCount(ManifestEntry):
    """Structures of one electronic state."""

    charge: int | None
    """e; null where it is not stated."""
    spin: int | None
    """Multiplicity 2S+1; null where it is not stated."""
    structures: dict[SplitName, int]
    """Number of structures in each split."""


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
    """Versions of the software that wrote the store."""

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
    states: tuple[StateCount, ...] = ()
    """Electronic states of the structures; empty where no structure states its charge or spin. `options` contains the
    keys from which they were read and the convention of the spin in the files (`spin_is`)."""
    conflicts: Conflicts | None = None
    """Equal geometries with different labels; null where there are none."""
    findings: tuple[Finding, ...] = ()
    """Possible problems of the dataset as a whole, which `ramify prepare` shows as warnings."""
    remarks: dict[str, int] = {}
    """Number of structures in the store (before splitting) with a label that was left out or is doubtful, by reason;
    `ramify prepare` shows them as warnings, `quarantine.jsonl` lists the structures."""
    read: int
    """Records read: those in the store and those dropped."""
    moved_to_train: list[str]
    """Groups kept in the training split although their hash selects another, because only they hold some element."""
    shared_groups: int = 0
    """Groups in more than one split; possible only where the files define the split."""
    sources: list[SourceFile]
    columns: dict[str, Column]
    blocks: dict[str, list[int]] | None = None
    """Checksums of each column's blocks of rows (see `ramify.store.blocks`); null in stores of older versions, which
    can only be checked as a whole."""
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

    def warnings(self) -> list[str]:
        """Remarks and findings in one form, `TEXT (FIX)`; a remark begins with its number of structures."""
        lines = []
        for reason, count in self.remarks.items():
            text, key, value = reason.partition(": zeros_are_absent: ")
            fix = f" ({key.removeprefix(': ')}{value})" if key else ""
            lines.append(f"{count} structure{'s' if count != 1 else ''}: {text}{fix}")
        return lines + [f"{finding.text} ({finding.fix})" for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain data for JSON.

        Keys added in later versions are omitted where they hold their default, so that older manifests keep their
        bytes and their checksum.
        """
        content = self.model_dump(mode="json")
        for key in ADDED_LATER:
            if getattr(self, key) == type(self).model_fields[key].default:
                del content[key]
        return content

    @property
    def sha256(self) -> str:
        """Checksum of the content."""
        return content_sha256(self.to_json())


ADDED_LATER: tuple[str, ...] = ("states", "conflicts", "findings", "remarks")
"""Keys of `Manifest` that were added during version 2 or with version 3: older stores lack them."""

REBUILD = "prepare the dataset again with `ramify prepare RECIPE --force`"


class Described(Protocol):
    """A store, opened or not."""

    path: Path
    manifest: Manifest


def check_matches(store: Described, options: BaseModel) -> None:
    """Raises an error if a store was prepared with options that differ from those in the recipe.

    Args:
        store: store of the dataset.
        options: recipe entry of the dataset.

    Raises:
        RamifyError: the options differ; the message lists each key with both values.
    """
    stated = options.model_dump(mode="json")
    try:
        used = type(options).model_validate(store.manifest.options).model_dump(mode="json")
    except ValidationError:  # another format, or keys that no longer exist
        used = store.manifest.options
    differing = [key for key in (*stated, *(k for k in used if k not in stated)) if stated.get(key) != used.get(key)]
    if differing:
        changes = "; ".join(f"{key}: prepared with {used.get(key)!r}, now {stated.get(key)!r}" for key in differing)
        raise RamifyError(
            f"the store {store.path} was prepared with other options ({changes})",
            fix="run `ramify prepare RECIPE --force` to prepare it again, or set another `stores` folder",
        )


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of the store in `folder`.

    Raises:
        RamifyError: no store, a damaged manifest, or an incompatible version.
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
    check_version(content, VERSION, path, f"update ramify, or {REBUILD}")
    version = content.get("version")
    if isinstance(version, int) and version < WITHOUT_STATES:
        raise RamifyError(
            f"{path}: the store has version {version}, this program reads {WITHOUT_STATES} to {VERSION}", fix=REBUILD
        )
    return parsed(Manifest, content, path, fix=REBUILD)
