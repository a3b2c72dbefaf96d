"""The model card of an export: description, intended use and errors of the model."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

import ramify
from ramify.inference.branches import DatasetInfo
from ramify.inference.saved import Saved
from ramify.labels import BUILT_IN, LABELS, mae
from ramify.model.parts import branch_of
from ramify.report.table_format import format_error
from ramify.uncertainty.error_bars import ErrorBars

Branches = Mapping[str, Mapping[str, DatasetInfo]]


def model_card(
    saved: Saved,
    branches: Branches,
    evaluation: Mapping[str, Any] | None,
    version: int,
    bars: ErrorBars | None = None,
) -> str:
    """The card in Markdown.

    Args:
        saved: the model.
        branches: the exported branches.
        evaluation: the rows of these branches in `evaluation.json`; None if the model was not evaluated.
        version: version of the export format.
        bars: error bars of these branches; None if they were not calibrated.
    """
    first = next(iter(branches))
    sections = [
        f"# {saved.recipe.get('name') or ' + '.join(branches)}",
        _summary(saved, branches),
        "## Branches",
        "\n".join(_branch_table(branches)),
        f"{_FORCES[saved.options['force_head']['kind']]} Energies are total energies on the scale of the branch's "
        "dataset, in eV; forces in eV/Å; stress in eV/Å³, tension positive.",
        "## Use",
        _USE.format(branch=first),
        "## Accuracy",
        "\n".join(_accuracy(evaluation)),
        "## Error bars",
        "\n".join(_error_bars(bars)),
        "## Limits",
        _LIMITS,
        "## Training",
        "\n".join(_data(branches)),
        f"The complete recipe, including branches that were not exported:\n\n```yaml\n{_yaml(saved.recipe)}```",
        f"Format `ramify-model` version {version}, written by ramify {ramify.__version__}: `manifest.json` holds "
        "options, reference energies, the recipe and checksums, the `.safetensors` files the weights.",
    ]
    return "\n\n".join(sections) + "\n"


_FORCES = {
    "conservative": "Forces are −dE/dx of the energy, so energy is conserved; stress is predicted as well.",
    "direct": "Forces are predicted by a separate head: in general they do not conserve energy. No stress.",
}

_USE = """```python
import ramify

model = ramify.load("path/to/this/folder")
found = model.predict(atoms, branch="{branch}")  # ASE atoms, or a list of them
atoms.calc = ramify.Calculator(model, branch="{branch}")
```

```bash
ramify predict structures.extxyz --model path/to/this/folder --branch {branch} --out predicted.extxyz
```"""

_LIMITS = (
    "A branch accepts only elements of its training data; others are an error. It interpolates: for structures, "
    "temperatures and pressures unlike the training data, errors are larger than in the tables, and for atoms closer "
    "than any in the data, the prediction comes with a warning. Energies of two branches have different scales and "
    "must not be subtracted from each other. The licences of the training data are not recorded here."
)


def _summary(saved: Saved, branches: Branches) -> str:
    encoder = saved.options["encoder"]
    parameters = sum(t.numel() for name, t in saved.weights.items() if branch_of(name) in {None, *branches})
    return (
        f"An interatomic model trained with Ramify: one shared encoder, and {len(branches)} branch"
        f"{'' if len(branches) == 1 else 'es'}. {parameters:,} parameters; encoder `{encoder['kind']}` of "
        f"{encoder['layers']} layers and width {encoder['width']}, cutoff {encoder['cutoff']} Å; trained for "
        f"{saved.step:,} steps with ramify {saved.ramify}."
    )


def _branch_table(branches: Branches) -> Iterator[str]:
    yield "| branch | dataset | level of theory | structures | elements |"
    yield "|---|---|---|---:|---|"
    for branch, group in branches.items():
        for info in group.values():
            theory = info.theory or "not stated"
            yield f"| {branch} | {info.name} | {theory} | {info.structures:,} | {' '.join(info.elements)} |"


def _accuracy(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    if evaluation is None:
        yield "Not evaluated: run `ramify evaluate RUN` before `ramify export RUN` to include the errors here."
        return
    rows = [row for row in evaluation["rows"] if evaluation["branch_of"].get(row["dataset"]) == row["branch"]]
    shown = [name for name in LABELS if name in BUILT_IN or any(row.get(mae(name)) is not None for row in rows)]
    yield (
        f"Mean absolute errors over the whole {evaluation['split']} split: "
        f"{'; '.join(f'{name} in {LABELS[name].error_text}' for name in shown)}. Each error is followed by that of the "
        "trivial predictor: one energy per element, zero forces and stress, the mean of any other label."
    )
    yield ""
    yield f"| branch | dataset | structures | {' | '.join(f'{name} | trivial' for name in shown)} |"
    yield f"|---|---|---:|{'---:|' * 2 * len(shown)}"
    trivial = {row["dataset"]: row for row in evaluation["trivial"]}
    for row in rows:
        errors = [entry.get(mae(name)) for name in shown for entry in (row, trivial.get(row["dataset"], {}))]
        cells = ["—" if error is None else format_error(error) for error in errors]
        yield f"| {row['branch']} | {row['dataset']} | {row['structures']} | {' | '.join(cells)} |"


def _error_bars(bars: ErrorBars | None) -> Iterator[str]:
    if bars is None:
        yield "Not calibrated: run `ramify calibrate RUN` before `ramify export RUN` to include error bars."
        return
    yield (
        "Calibrated: predictions have standard deviations of energies, and on request of forces. Their quality on the "
        "test split: rank correlation of error bars and errors, and errors within one and two error bars (68 and 95 % "
        "of normally distributed ones)."
    )
    yield ""
    yield "| dataset | | rank correlation | within 1σ | within 2σ |"
    yield "|---|---|---:|---:|---:|"
    for dataset, quantities in bars.measured.items():
        for quantity, found in quantities.items():
            within = " | ".join(f"{100 * found[key]:.0f} %" for key in ("coverage_1", "coverage_2"))
            yield f"| {dataset} | {quantity} | {found['spearman']:.2f} | {within} |"


def _data(branches: Branches) -> Iterator[str]:
    yield "Checksums of the manifests of the prepared datasets, which name the original files:"
    yield ""
    for group in branches.values():
        for info in group.values():
            yield f"- {info.name}: `{info.manifest_sha256}`"


def _yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
