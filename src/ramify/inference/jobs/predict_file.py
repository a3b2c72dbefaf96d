"""`ramify predict`: predictions for a file of structures; streamed, and resumable after an interruption."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ramify.errors import RamifyError
from ramify.files import content_sha256, disk_full_named, sha256
from ramify.inference.jobs.frames import frames, keep_labels
from ramify.inference.jobs.resumable import OutputProgress, ResumableOutput
from ramify.inference.label_errors import add_errors
from ramify.inference.memory import budget_for
from ramify.inference.model import Model
from ramify.inference.predictions import Prediction, Predictions
from ramify.labels import LABELS
from ramify.structures import Structures

CHUNK_STRUCTURES = 4096
CHUNK_ATOMS = 40_000
"""Largest number of structures, and approximate number of atoms, that are read, predicted and written together."""

Chunk = list[tuple[int, Atoms]]
"""Structures with their index in the file."""


def predict_file(
    model: Model,
    source: Path,
    target: Path,
    branches: Sequence[str],
    *,
    dataset: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    forces_std: bool = False,
    form: str | None = None,
    memory: float | None = None,
    restart: bool = False,
    progress: Callable[[int], None] = lambda structures: None,
) -> OutputProgress:
    """Predicts every structure of a file.

    Args:
        model: the model.
        source: any file that ASE reads.
        target: extended XYZ; must not exist. Skipped structures are listed in TARGET.skipped.jsonl.
        branches: one, whose results have the names of ASE; or several, whose results have the name of the branch:
            `energy_NAME`, `forces_NAME`, `stress_NAME`. Further labels are in `info`, in the units of their columns,
            and so is `energy_std` (eV) of a model with error bars.
        dataset: dataset whose energy scale is used, see `Model.predict`.
        charge, spin: charge in e and multiplicity of structures that state none, see `Model.predict`.
        forces_std: also write `forces_std` (eV/Å).
        form: format name of ASE; None to detect the format.
        memory: bytes that one batch may take; None for all free memory.
        restart: start again instead of resuming an interrupted job.
        progress: called with the number of structures completed since the last call.

    Returns:
        The progress, with the sums of errors by branch if the source has labels.

    Raises:
        RamifyError: `target` exists, the interrupted job was another one, the file is unreadable, or the disk is full;
            or `forces_std` of a model without error bars.
    """
    predictors = [model.predictor(name, dataset, charge=charge, spin=spin, forces_std=forces_std) for name in branches]
    job = _job(model, source, branches, [dataset, charge, spin, *(["forces_std"] if forces_std else [])])
    output = ResumableOutput(target, job, restart=restart)
    budgets = [budget_for(model.options, p.branch.forces, model.device, memory) for p in predictors]
    progress(output.progress.frames)
    with disk_full_named(target, left="predictions so far are kept", fix="free some space and run it again"):
        for chunk in _chunks(frames(source, output.quarantine, output.progress.frames, form)):
            structures = Structures.from_ase([atoms for _, atoms in chunk])
            found = {
                p.branch.name: p.predict(structures, budget) for p, budget in zip(predictors, budgets, strict=True)
            }
            _note_refused(output, source, chunk, found)
            images = [_image(*entry, {name: f[k] for name, f in found.items()}) for k, entry in enumerate(chunk)]
            for k, (_, atoms) in enumerate(chunk):
                for name, predictions in found.items():
                    if (one := predictions[k]) is not None:
                        add_errors(output.progress.errors.setdefault(name, {}), atoms, one)
            output.progress.warnings += sum(len(f.warnings) for f in found.values())
            output.progress.frames = chunk[-1][0] + 1
            output.put([image for image in images if image is not None])
            progress(len(chunk))
        output.finish()
    return output.progress


def _note_refused(output: ResumableOutput, source: Path, chunk: Chunk, found: dict[str, Predictions]) -> None:
    """Reports the structures that a branch refused to the quarantine, in the order of the file."""
    prefix = {name: f"branch {name}: " if len(found) > 1 else "" for name in found}
    for k, (index, _) in enumerate(chunk):
        for name, predictions in found.items():
            if k in predictions.refused:
                reason, detail = predictions.refused[k]
                output.quarantine.add(f"{source.name}[{index}]", prefix[name] + reason, detail)


def _image(index: int, atoms: Atoms, answers: dict[str, Prediction | None]) -> Atoms | None:
    """The structure with the predictions of the branches; None if there are none."""
    if all(answer is None for answer in answers.values()):
        return None
    image = keep_labels(atoms)
    image.info["source_index"] = index
    for name, found in answers.items():
        if found is None:
            continue
        results: dict[str, Any] = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
        given = {key: value for key, value in results.items() if value is not None}
        further = {
            label: value * len(atoms) if LABELS[label].extensive else value for label, value in found.labels.items()
        }
        if found.energy_std is not None:
            further["energy_std"] = found.energy_std
        if found.forces_std is not None:
            image.arrays["forces_std" if len(answers) == 1 else f"forces_std_{name}"] = found.forces_std
        if len(answers) == 1:
            image.info["branch"] = name
            image.calc = SinglePointCalculator(image, **given)
            image.info.update(further)
        else:
            for key, value in (given | further).items():
                place: dict[str, Any] = image.arrays if key == "forces" else image.info
                place[f"{key}_{name}"] = value
        if found.warning:
            image.info["warning" if len(answers) == 1 else f"warning_{name}"] = found.warning
    return image


def _chunks(found: Iterator[tuple[int, Atoms]]) -> Iterator[Chunk]:
    chunk: Chunk = []
    atoms = 0
    for entry in found:
        chunk.append(entry)
        atoms += len(entry[1])
        if atoms >= CHUNK_ATOMS or len(chunk) >= CHUNK_STRUCTURES:
            yield chunk
            chunk, atoms = [], 0
    if chunk:
        yield chunk


def _job(model: Model, source: Path, branches: Sequence[str], stated: list[str | int | None]) -> str:
    """Checksum of all inputs of the predictions; the source by its size and modification time."""
    if not source.is_file():
        raise RamifyError(f"{source} does not exist", fix="correct the path of the structures")
    status = source.stat()
    of_source = [str(source.resolve()), status.st_size, status.st_mtime_ns]
    bars = [] if model.bars is None or model.saved.uncertainty is None else [sha256(model.saved.uncertainty)]
    return content_sha256([of_source, *model.identity, list(branches), *stated, str(model.dtype), *bars])
