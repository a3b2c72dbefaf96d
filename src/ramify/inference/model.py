"""`Model`: a trained model in memory, and `load`, which reads one from a run, a checkpoint or an export."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from ase import Atoms

from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.committee import members_of, refuse_committee
from ramify.checkpoint.pointers import resolve
from ramify.errors import RamifyError, RamifyWarning
from ramify.files import read_json
from ramify.inference.branches import BranchInfo, choose_branch, choose_dataset
from ramify.inference.export.exported import read_export
from ramify.inference.memory import budget_for
from ramify.inference.passes.plain import Pass, PlainPass
from ramify.inference.predictions import Prediction, Predictions
from ramify.inference.predictor import Predictor
from ramify.inference.saved import Saved, read_checkpoint, read_run
from ramify.model.multibranch import MultiBranch
from ramify.model.physics.dispersion import Dispersion
from ramify.notebook import html_table
from ramify.recipe import ModelOptions
from ramify.structures import Structures
from ramify.uncertainty.error_bars import ErrorBars, no_error_bars

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model. Made by `load`.

    Attributes:
        branches: facts about each branch, by name.
        network: encoder and heads; its parameters are frozen.
        options: options that the network was built from.
        saved: the saved model that it was loaded from.
        bars: error bars (`ramify calibrate`); None without.
        compiled: whether passes run compiled programs (`ramify.inference.passes.compiled`).
        on_compile: called before a program is compiled, which takes one to two minutes; None for a warning.
        members: models of a committee, the first of which has all other attributes but `bars`; empty without.
        dispersion: correction added to all predictions; None without.
    """

    branches: Mapping[str, BranchInfo]
    network: MultiBranch
    options: ModelOptions
    saved: Saved
    bars: ErrorBars | None = None
    compiled: bool = False
    on_compile: Callable[[], None] | None = None
    members: tuple["Model", ...] = ()
    dispersion: Dispersion | None = None
    _passes: dict[str, Pass] = field(default_factory=dict, init=False, repr=False)

    def _repr_html_(self) -> str:
        """In Jupyter: the branches, with their datasets and forces."""
        count = sum(p.numel() for p in self.network.parameters())
        what = f"Committee of {len(self.members)} models" if self.members else "Model"
        rows = [(name, ", ".join(info.datasets), info.forces) for name, info in self.branches.items()]
        return html_table(f"{what} with {count:,} parameters on {self.device}", ("branch", "datasets", "forces"), rows)

    @property
    def identity(self) -> list[str]:
        """Checksums of the weights of the model, or of the models of a committee; and the dispersion, if any."""
        weights = [model.saved.weights_sha256 for model in self.members or (self,)]
        return weights if self.dispersion is None else [*weights, repr(self.dispersion.options)]

    def with_compilation(self) -> "Model":
        """The same model with compiled passes, see `load`."""
        return replace(self, compiled=True, members=tuple(model.with_compilation() for model in self.members))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the parameters."""
        return next(self.network.parameters()).dtype

    def predictor(
        self,
        branch: str | None = None,
        dataset: str | None = None,
        *,
        charge: int | None = None,
        spin: int | None = None,
        forces_std: bool = False,
    ) -> Predictor:
        """A predictor for one branch; `charge` (e) and `spin` (multiplicity) are those of structures that state none.

        Raises:
            RamifyError: see `predict`.
        """
        dispersion = self.dispersion
        if self.members:
            members = [m.predictor(branch, dataset, charge=charge, spin=spin) for m in self.members]
            members = [replace(member, bars=None) for member in members]
            if forces_std and members[0].branch.forces is None:
                raise no_error_bars(members[0].branch.name, "error bars of forces")
            if dispersion is not None:
                dispersion.must_fit(members[0].dataset.name, members[0].dataset.theory)
            return replace(members[0], members=tuple(members), forces_std=forces_std, dispersion=dispersion)
        chosen = choose_branch(self.branches, branch)
        scale = choose_dataset(chosen, dataset)
        if dispersion is not None:
            dispersion.must_fit(scale.name, scale.theory)
        bars = None if self.bars is None else self.bars.of(chosen.name, scale.name)
        if forces_std and (bars is None or bars.facts.datasets[scale.name].forces is None):
            raise no_error_bars(chosen.name, "error bars of forces")
        return Predictor(
            self.network, self.options, chosen, scale, self.pass_of(chosen.name), charge, spin, bars, forces_std,
            dispersion=dispersion,
        )  # fmt: skip

    def pass_of(self, branch: str) -> Pass:
        """The pass of a branch; a compiled one is loaded once."""
        if branch not in self._passes and not self.compiled:
            self._passes[branch] = PlainPass(self.network, branch)
        elif branch not in self._passes:
            from ramify.inference.passes.compiled import compiled_pass  # the compiler takes a second to import

            self._passes[branch] = compiled_pass(self.network, branch, on_compile=self.on_compile)
        return self._passes[branch]

    @overload
    def predict(
        self,
        atoms: Atoms,
        branch: str | None = None,
        *,
        dataset: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        forces_std: bool = False,
        skip: bool = False,
        memory: float | None = None,
        progress: Progress = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        atoms: Sequence[Atoms] | Structures,
        branch: str | None = None,
        *,
        dataset: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        forces_std: bool = False,
        skip: bool = False,
        memory: float | None = None,
        progress: Progress = ...,
    ) -> Predictions: ...

    def predict(
        self,
        atoms: Atoms | Sequence[Atoms] | Structures,
        branch: str | None = None,
        *,
        dataset: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        forces_std: bool = False,
        skip: bool = False,
        memory: float | None = None,
        progress: Progress = lambda structures: None,
    ) -> Prediction | Predictions:
        """Total energies (eV, references added), forces (eV/Å) and, of conservative branches, stress (eV/Å³).

        Args:
            atoms: one structure or several, which are predicted in batches.
            branch: name of the branch; required if there are several.
            dataset: dataset whose energy scale is used; required if the branch was trained on several.
            charge, spin: charge in e and multiplicity of structures that state none (`atoms.info`), for models that
                take them as conditions.
            forces_std: also compute standard deviations of forces, of a model with error bars.
            skip: leave out structures that cannot be predicted and list them in `Predictions.refused`, instead of
                raising an error.
            memory: bytes that one batch may take; None for all free memory.
            progress: called with the number of structures predicted since the last call.

        Raises:
            RamifyError: there are several branches (or datasets) and none is named, a name is unknown, or (without
                `skip`) a structure cannot be predicted: no atoms, an element that is not in the training data, two
                atoms at one position, a periodic cell without volume, too many atoms for the memory, an overflow, or no
                charge or spin, or an impossible one, for a model that takes them; or `forces_std` is given for a model
                without error bars; or the dispersion of the model does not fit the level of theory of the branch.

        Warns:
            RamifyWarning: atoms closer than any in the training data, or a charge or spin, taken as a condition, that
                these do not contain.
        """
        predictor = self.predictor(branch, dataset, charge=charge, spin=spin, forces_std=forces_std)
        structures, single = _as_structures(atoms)
        budget = budget_for(self.options, predictor.branch.forces, self.device, memory)
        found = predictor.predict(structures, budget, progress)
        if found.refused and not (skip and not single):
            raise _refusal(found)
        if found.warnings:
            first, why = next(iter(found.warnings.items()))
            count = f"{len(found.warnings)} of {len(found)} structures, the first is number {first}: "
            warnings.warn(f"extrapolation: {'' if single else count}{why}", RamifyWarning, stacklevel=2)
        if single:
            one = found[0]
            assert one is not None
            return one
        return found


@torch.inference_mode(False)  # tensors made in inference mode cannot be differentiated outside of it
def load(
    path: str | Path | Sequence[str | Path],
    *,
    checkpoint: str = "best",
    device: str | torch.device = "cpu",
    precision: str | None = None,
    compile: bool = False,
    on_compile: Callable[[], None] | None = None,
    dispersion: Mapping[str, Any] | None = None,
) -> Model:
    """Reads a trained model; needs none of its training data.

    Args:
        path: a run directory, a checkpoint folder, or a folder written by `ramify export`. Of several paths, or the
            folder of `ramify train --seeds`, a committee of the models: it predicts their means, with their standard
            deviations as error bars.
        checkpoint: checkpoint of a run: `best`, `latest` or the folder name of a step.
        device: name of the device in PyTorch, e.g. `cuda`.
        precision: `fp32` or `fp64`; None for the precision of the training (float32 for `bf16` and `tf32`).
        compile: compile the passes of each branch when it is first used: the same results within rounding, in less time
            per structure. Takes one to two minutes once per kind of model and machine; later the program is read from
            `ramify.files.cache_folder`. Where that is impossible, a warning states the reason, and
            the branch is used without compilation.
        on_compile: called before a program is compiled; None for a warning.
        dispersion: adds the dispersion of D3 to all predictions, e.g. `{"functional": "pbe", "damping": "bj"}`; the
            keys are those of `ramify.model.physics.dispersion.DispersionOptions`. Refused for branches whose level of
            theory contains dispersion, is another, or is not stated.

    Raises:
        RamifyError: there is no model, or it is damaged or of a newer format, or several models do not have the same
            branches, elements, levels of theory and neighbourhoods, or have the same weights; or `dispersion` is
            invalid.
    """
    correction = None if dispersion is None else Dispersion.of(dispersion)
    given = [path] if isinstance(path, str | Path) else path
    paths = [member for each in given for member in members_of(Path(each))]
    if len(paths) > 1 or given is path:
        load_one = partial(
            load, checkpoint=checkpoint, device=device, precision=precision, compile=compile, on_compile=on_compile
        )
        return replace(_committee(paths, load_one), dispersion=correction)
    saved = read_saved(paths[0], checkpoint)
    options, network = saved.build()
    if precision is not None:
        if precision not in ("fp32", "fp64"):
            raise RamifyError(f"precision '{precision}' is unknown", fix="give 'fp32' or 'fp64'")
        network = network.to(torch.float64 if precision == "fp64" else torch.float32)
    try:
        network = network.to(device)
    except (RuntimeError, AssertionError) as error:  # raised by PyTorch for devices that are unknown or not compiled in
        raise RamifyError(f"device '{device}' cannot be used: {error}", fix="give device='cpu'") from None
    branches = {
        name: BranchInfo(name, dict(group), network.branch(name).forces, options.conditions)
        for name, group in saved.branches.items()
    }
    return Model(branches, network, options, saved, saved.error_bars(), compile, on_compile, (), correction)


def _committee(paths: Sequence[Path], load_one: Callable[[Path], Model]) -> Model:
    """The committee of several models; a single one is itself."""
    if not paths:
        raise RamifyError("no model is given", fix="give the path of one, or of several for a committee")
    models = [load_one(path) for path in paths]
    known: dict[str, Path] = {}
    for path, model in zip(paths, models, strict=True):
        mine, theirs = _common(models[0]), _common(model)
        if differing := [key for key in mine | theirs if mine.get(key) != theirs.get(key)]:
            key = differing[0]
            raise RamifyError(
                f"{paths[0]} and {path} cannot form a committee: {key} is {mine.get(key)} and {theirs.get(key)}",
                fix="give models of one recipe that differ in train.seed",
            )
        if (same := known.setdefault(model.saved.weights_sha256, path)) is not path:  # the spread would be too small
            raise RamifyError(
                f"{same} and {path} cannot form a committee: their weights are the same",
                fix="give models that differ in train.seed",
            )
    return models[0] if len(models) == 1 else replace(models[0], members=tuple(models), bars=None)


def _common(model: Model) -> dict[str, object]:
    """What the models of a committee have in common: else a mean of their energies has no meaning, or they would need
    other edges."""
    encoder = model.options.encoder
    found: dict[str, object] = {"conditions": model.options.conditions}
    found |= {"cutoff": encoder.cutoff, "max_neighbors": encoder.max_neighbors}
    for name, branch in model.branches.items():
        found[f"forces of branch {name}"] = branch.forces or "none"
        for dataset, info in branch.datasets.items():
            found[f"theory of {dataset} in branch {name}"] = info.theory
            found[f"elements of {dataset} in branch {name}"] = " ".join(info.elements)
    return found


def read_saved(path: Path, checkpoint: str = "best") -> Saved:
    """Reads a checkpoint of a run, a checkpoint folder (also `RUN/checkpoints/best`) or an export.

    Raises:
        RamifyError: `path` is none of these, or the weights do not fit the model that it describes.
    """
    saved = _read(resolve(path), checkpoint)
    saved.must_fit()
    return saved


def _read(path: Path, checkpoint: str) -> Saved:
    if (path / "recipe.yaml").is_file():
        return read_run(path, checkpoint)
    if (path / "manifest.json").is_file():
        manifest = read_json(path / "manifest.json")
        if isinstance(manifest, dict) and manifest.get("format") == "ramify-checkpoint":
            return read_checkpoint(open_checkpoint(path))
        return read_export(path)
    refuse_committee(path)
    raise RamifyError(
        f"{path} {'holds no model' if path.exists() else 'does not exist'}",
        fix="give a run directory, a checkpoint folder, or a folder that `ramify export` wrote",
    )


def _as_structures(atoms: Atoms | Sequence[Atoms] | Structures) -> tuple[Structures, bool]:
    """The structures, and whether a single one was given."""
    if isinstance(atoms, Structures):
        return atoms, False
    if isinstance(atoms, Atoms):
        return Structures.from_ase([atoms]), True
    return Structures.from_ase(list(atoms)), False


def _refusal(found: Predictions) -> RamifyError:
    first, (reason, detail) = next(iter(found.refused.items()))
    which = "" if len(found) == 1 else f"structure {first}: "
    more = "" if len(found.refused) == 1 else f" ({len(found.refused)} of {len(found)} structures have no prediction)"
    fix = "correct the structure" + ("" if len(found) == 1 else ", or predict the others alone with skip=True")
    return RamifyError(f"{which}{reason}: {detail}{more}", fix=fix)
