"""`ramify predict`: a file of structures in, a file of predictions out; streamed, and taken up again after a stop."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ramify.errors import RamifyError
from ramify.files import content_sha256, disk_full_named
from ramify.inference.jobs.frames import frames, keep_labels
from ramify.inference.jobs.resumable import OutputProgress, ResumableOutput
from ramify.inference.label_errors import add_errors
from ramify.inference.memory import budget_for
from ramify.inference.model import Model
from ramify.inference.predictions import Prediction, Predictions
from ramify.structures import Structures

CHUNK_STRUCTURES = 4096
CHUNK_ATOMS = 40_000
"""A chunk is read, predicted, written and made safe together: at most so many structures, and not many more atoms."""

Chunk = list[tuple[int, Atoms]]
"""Structures with their place in the file."""


def predict_file(
    model: Model,
    source: Path,
    target: Path,
    branches: Sequence[str],
    *,
    dataset: str | None = None,
    form: str | None = None,
    memory: float | None = None,
    restart: bool = False,
    progress: Callable[[int], None] = lambda structures: None,
) -> OutputProgress:
    """Predicts every structure of a file.

    Args:
        model: that predicts.
        source: any file that ASE reads.
        target: extended XYZ; must not exist. What was left out is listed beside it, in TARGET.skipped.jsonl.
        branches: one, whose results stand under ASE's own names; or several, whose results carry the branch's name:
            `energy_NAME`, `forces_NAME`, `stress_NAME`.
        dataset: on whose energy scale, see `Model.predict`.
        form: ASE's name of the source's format; None to tell it from the file.
        memory: bytes that one batch may take; None for all that is free.
        restart: begin anew where an earlier attempt was cut off.
        progress: called with the number of structures done since the last call.

    Returns:
        How far it has come, with the sums of errors by branch where the source has labels.

    Raises:
        RamifyError: `target` exists, an earlier attempt was another job, a file that cannot be read, or a full disk.
    """
    predictors = [model.predictor(name, dataset) for name in branches]
    output = ResumableOutput(target, _job(model, source, branches, dataset), restart=restart)
    budgets = [budget_for(model.options, p.branch.forces, model.device, memory) for p in predictors]
    progress(output.progress.frames)
    with disk_full_named(target, left="what was predicted is kept", fix="free some space and run the same again"):
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
    """Tells the quarantine which structures which branch refused, in the order of the file."""
    prefix = {name: f"branch {name}: " if len(found) > 1 else "" for name in found}
    for k, (index, _) in enumerate(chunk):
        for name, predictions in found.items():
            if k in predictions.refused:
                reason, detail = predictions.refused[k]
                output.quarantine.add(f"{source.name}[{index}]", prefix[name] + reason, detail)


def _image(index: int, atoms: Atoms, answers: dict[str, Prediction | None]) -> Atoms | None:
    """The structure with what the branches say of it; None where none says anything."""
    if all(answer is None for answer in answers.values()):
        return None
    image = keep_labels(atoms)
    image.info["source_index"] = index
    for name, found in answers.items():
        if found is None:
            continue
        results: dict[str, Any] = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
        given = {key: value for key, value in results.items() if value is not None}
        if len(answers) == 1:
            image.info["branch"] = name
            image.calc = SinglePointCalculator(image, **given)
        else:
            for key, value in given.items():
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


def _job(model: Model, source: Path, branches: Sequence[str], dataset: str | None) -> str:
    """Checksum of all that the predictions depend on; the source by its size and time of change."""
    if not source.is_file():
        raise RamifyError(f"{source} does not exist", fix="correct the path of the structures")
    status = source.stat()
    of_source = [str(source.resolve()), status.st_size, status.st_mtime_ns]
    return content_sha256([of_source, model.saved.weights_sha256, list(branches), dataset, str(model.dtype)])
