"""Inspection of a file of unknown content: its format, keys, a sample of its structures, and a draft recipe."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ramify.elements import SYMBOLS, all_electron_energy
from ramify.errors import RamifyError
from ramify.sources.file_keys import keys_of
from ramify.sources.formats import formats
from ramify.sources.label_rules import apply_label_rules
from ramify.sources.labels import AtomsOptions, LabelledOptions
from ramify.sources.quarantine import Quarantine
from ramify.sources.recognize import recognize
from ramify.sources.states import CHARGES, SPINS, apply_states
from ramify.sources.units import BELOW_ALL, PER_ATOM, same_ratio, unit_of_ratio
from ramify.structures import Structures, state_text

SAMPLE = 2000
"""Number of structures in the sample."""

ENOUGH = 20
"""Minimum number of structures whose energies reveal their unit."""

FEWEST_GROUPS = 3
"""Minimum number of groups that can be divided into train, val and test."""

UNSTATED = {  # required keys that the files of a format do not state, with a guess
    "qcml": {"length": "bohr"},
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Result of the inspection.

    Attributes:
        path: the file.
        format: name of its format.
        theory: level of theory of all files of the format; empty if they differ.
        units: those that the file states, or a sentence on those of the format; empty if neither.
        keys: names in the file, with type and shape: of the first records, or of the arrays.
        structures: number of structures read; all of the file if `whole`.
        whole: whether the sample is the whole file.
        atoms: fewest and most atoms of a structure.
        elements: symbols in the sample.
        labels: structures of the sample with each label.
        energy_per_atom: lowest and highest, eV.
        max_force: largest norm, eV/Å.
        periodic: number of structures with a periodic axis.
        states: structures by charge and multiplicity, `charge 0, multiplicity 1`; empty if the file states neither.
        groups: number of groups in the sample.
        left_out: number of unusable records, by reason.
        doubts: points to check before using the data.
        recipe: YAML of a recipe with the dataset.
    """

    path: str
    format: str
    theory: str
    units: str
    keys: dict[str, str]
    structures: int = 0
    whole: bool = False
    atoms: tuple[int, int] | None = None
    elements: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    energy_per_atom: tuple[float, float] | None = None
    max_force: float | None = None
    periodic: int = 0
    states: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    doubts: list[str]
    recipe: str

    def as_data(self) -> dict[str, Any]:
        """Converts the result to plain data."""
        return asdict(self)


def look(path: Path, format_name: str | None = None) -> Look:
    """Inspects a file.

    Args:
        path: the file.
        format_name: its format; None to detect it.

    Raises:
        RamifyError: no such file, an unknown format, or damaged at its beginning.
    """
    name = format_name or recognize(path)
    if name not in formats():
        raise RamifyError(f"--format {name}: accepted are {', '.join(formats())}")
    keys = dict(keys_of(path, name))
    chosen, doubts = _chosen(name, keys)
    sample, corrected = _corrected(path, name, chosen)
    chosen |= corrected
    doubts = [doubt for doubt in doubts if not any(key in doubt for key in corrected)]  # for which there is an answer
    if sample.whole and len(sample.found) >= ENOUGH and sample.groups() < FEWEST_GROUPS:
        chosen["split"] = {"by": "block"}
    return Look(
        path=str(path),
        format=name,
        theory=formats()[name].theory,
        units=_units(name, keys),
        keys=keys,
        doubts=doubts + sample.doubts,
        recipe=_recipe(path, name, chosen),
        left_out=dict(sample.quarantine.counts),
        whole=sample.whole,
        **sample.facts(),
    )


def _corrected(path: Path, name: str, chosen: Mapping[str, Any]) -> tuple["_Sample", dict[str, Any]]:
    """The sample, and the recipe keys without which all its structures or energies would be impossible."""
    sample, found, notes = _Sample.read(path, name, chosen), dict[str, Any](), list[str]()
    if "spin_key" in chosen and not len(sample.found):
        other = _Sample.read(path, name, {**chosen, "spin_is": "unpaired"})
        if len(other.found):
            sample, found["spin_is"] = other, "unpaired"
            notes.append(
                f"'{chosen['spin_key']}' holds numbers of unpaired electrons: as multiplicities 2S+1 they contradict "
                "the number of electrons in every structure; `spin_is: unpaired` states it"
            )
    if _may_have_any_units(name) and (unit := sample.unit()):
        found["units"] = {"energy": unit}
        sample = _Sample.read(path, name, {**chosen, **found})
        notes.append(f"energies are those of atoms with all their electrons in {unit}, not in eV; `units` states it")
    return replace(sample, doubts=notes + sample.doubts), found


def _stated(keys: Mapping[str, str]) -> dict[str, str]:
    """Units that the file states, by the names under which it does."""
    return {key: kind.removeprefix("str ") for key, kind in keys.items() if "unit" in key.lower() and kind[-1] != ")"}


def _units(name: str, keys: Mapping[str, str]) -> str:
    """Units of a file, and where they are known from; empty if nothing states them."""
    if not _may_have_any_units(name):
        return "those of the format, converted to eV, eV/Å, Å and eV/Å³"
    return ", ".join(f"{key}: {unit}" for key, unit in _stated(keys).items())


def _may_have_any_units(name: str) -> bool:
    return issubclass(formats()[name].options, LabelledOptions) and name not in ("vasp", "espresso")


def _chosen(name: str, keys: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Recipe keys suggested by the names in the file, and doubts about them."""
    chosen: dict[str, Any] = dict(UNSTATED.get(name, {}))
    doubts = [f"`{key}` is not stated by the file: {value!r} is a guess" for key, value in chosen.items()]
    if name == "qm7x" and not {"ePBE0+MBD", "totFOR"} <= keys.keys():
        chosen["labels"] = "pbe0"
    options = formats()[name].options
    if _may_have_any_units(name) and not _stated(keys):
        doubts.append("the file states no units: eV, Å, eV/Å and eV/Å³ are the defaults of the recipe")
    if not issubclass(options, AtomsOptions) or not keys or name == "parquet":  # whose names are those of its publisher
        return chosen, doubts
    for key, words in (("energy_key", ("energy",)), ("forces_key", ("force",)), ("stress_key", ("stress",))):
        default = options.model_fields[key].default
        fitting = sorted((n for n in keys if _may_be(key, n, words, keys[n])), key=_unlikely)
        if default in keys or not fitting:
            continue
        chosen[key] = fitting[0]
        if key == "energy_key" and PER_ATOM.search(fitting[0]):
            chosen["energy_is_per_atom"] = True
        if len(fitting) > 1:
            doubts.append(f"`{key}`: {', '.join(fitting)} are all possible; {fitting[0]} was chosen")
    for key, names in (("charge_key", CHARGES), ("spin_key", SPINS)):
        fitting = [name for name in names if name in keys]
        if not fitting:
            continue
        chosen[key] = fitting[0]
        if key == "spin_key":
            doubts.append(
                f"`spin_key`: '{fitting[0]}' is read as the multiplicity 2S+1; `spin_is` states other conventions"
            )
    virial = next((n for n in keys if "virial" in n.lower() and "stress" not in n.lower()), None)
    if virial is not None and "stress" not in keys and "stress_key" not in chosen:
        chosen["virial_key"] = virial
    return chosen, doubts


def _may_be(key: str, name: str, words: tuple[str, ...], kind: str) -> bool:
    """Whether a value of a file may be the label of a recipe key, by its name and shape."""
    if not any(word in name.lower() for word in words) or "unit" in name.lower():
        return False
    if key == "energy_key":
        return not kind.endswith(")")
    return kind.endswith(", 3)" if key == "forces_key" else ("(3, 3)", "(6,)", "(9,)"))


def _unlikely(name: str) -> tuple[bool, bool]:
    """Order of names that may be an energy: totals first, then energies per atom, then differences to a reference."""
    differences = ("formation", "cohesive", "hull", "binding", "atomization", "correction")
    return any(word in name.lower() for word in differences), bool(PER_ATOM.search(name))


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The structures at the beginning of a file."""

    found: Structures
    quarantine: Quarantine
    whole: bool
    doubts: list[str]

    @classmethod
    def read(cls, path: Path, name: str, chosen: Mapping[str, Any]) -> "_Sample":
        parts, doubts, quarantine, whole = [], [], Quarantine(), False
        try:
            options = formats()[name].options.model_validate({"format": name, "path": str(path), **chosen})
            chunks, count = formats()[name].read(path, options, quarantine), 0
            for chunk in chunks:
                chunk = apply_label_rules(apply_states(chunk, options, quarantine), options, quarantine)
                parts.append(chunk)
                count += len(chunk)
                if count >= SAMPLE:
                    break
            whole = next(chunks, None) is None
        except RamifyError as error:
            doubts.append(str(error))
        doubts += [f"{reason}: {count} structures" for reason, count in quarantine.remarks.items()]
        if quarantine.counts and not any(quarantine.summary() in doubt for doubt in doubts):
            doubts.append(f"cannot be used: {quarantine.summary()}")
        found = Structures.concatenate(parts)
        sample = cls(found=found, quarantine=quarantine, whole=whole, doubts=doubts)
        if len(found) > 1 and sample.groups() < FEWEST_GROUPS:
            of = "file" if whole else "sample"
            doubts.append(
                f"the {of} has {sample.groups()} group(s), too few to divide into train, val and test: `split: {{by: "
                "block}` divides it into blocks of consecutive structures; `group_key` names other groups"
            )
        return sample

    def groups(self) -> int:
        """Number of groups, which a split by groups keeps whole."""
        return len(set(self.found.group.tolist()))

    def unit(self) -> str:
        """Unit in which the energies are those of all-electron atoms; empty if it is eV, or none.

        One element alone could have such energies in eV by chance, unless they are below all possible ones.
        """
        found = self.found
        if len(found) < ENOUGH:
            return ""
        atoms = np.add.reduceat(all_electron_energy()[found.numbers], found.offsets[:-1])
        part = np.where(found.energy == 0, 1e-12, found.energy / atoms)
        several = len(np.unique(found.numbers)) > 1
        if np.median(part) <= BELOW_ALL and (not several or same_ratio(part, 1.0)):
            return ""
        return unit_of_ratio(1 / part)

    def facts(self) -> dict[str, Any]:
        """Properties of the sample."""
        found = self.found
        if not len(found):
            return {}
        per_atom = found.energy / found.n_atoms
        norms = np.linalg.norm(found.forces, axis=1)
        offsets = found.offsets[:-1]
        return {
            "structures": len(found),
            "atoms": (int(found.n_atoms.min()), int(found.n_atoms.max())),
            "elements": [SYMBOLS[z] for z in np.unique(found.numbers).tolist()],
            "labels": {
                "energy": int(np.isfinite(found.energy).sum()),
                "forces": int(np.isfinite(np.maximum.reduceat(norms, offsets)).sum()),
                "stress": int(np.isfinite(found.stress).all(axis=(1, 2)).sum()),
            },
            "energy_per_atom": (float(per_atom.min()), float(per_atom.max())),
            "max_force": float(np.nanmax(norms)) if np.isfinite(norms).any() else None,
            "periodic": int(found.pbc.any(axis=1).sum()),
            "states": _states(found),
            "groups": self.groups(),
        }


def _states(found: Structures) -> dict[str, int]:
    """Structures by charge and multiplicity."""
    pairs = Counter(zip(found.charge.tolist(), found.spin.tolist(), strict=True)) if len(found) else Counter()
    merged: Counter[str] = Counter()
    for (charge, spin), count in pairs.items():
        merged[state_text(charge, spin)] += count
    nothing = state_text(np.nan, np.nan)
    return {} if set(merged) <= {nothing} else dict(sorted(merged.items()))


def _recipe(path: Path, name: str, chosen: Mapping[str, Any]) -> str:
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.name.split(".")[0]) or "data"
    entry = {"format": name, "path": str(path), **chosen}
    text: str = yaml.safe_dump({"datasets": {stem: entry}}, sort_keys=False, allow_unicode=True)
    return text
