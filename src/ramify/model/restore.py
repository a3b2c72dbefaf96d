"""Builds a model from stored weights, for checkpoints and exports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_parts
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import by_part
from ramify.recipe import ModelOptions


def restore_model(
    options: ModelOptions,
    branches: Mapping[str, Sequence[LabelSpread]],
    weights: Mapping[str, Tensor],
    precision: str,
    where: Path,
) -> MultiBranch:
    """The model, in evaluation mode.

    Args:
        options: of encoder and heads.
        branches: the spreads of the datasets of each branch.
        weights: under the names of a `MultiBranch`.
        precision: of the training; `fp64` is kept, all others compute in float32.
        where: source of the weights, for messages.

    Raises:
        RamifyError: see `must_fit`.
    """
    must_fit(options, branches, weights, where)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    with torch.inference_mode(False):
        model = build_parts(options, branches).to(dtype)
        model.load_state_dict(dict(weights), strict=True)
    return model.eval()


def must_fit(
    options: ModelOptions, branches: Mapping[str, Sequence[LabelSpread]], weights: Mapping[str, Tensor], where: Path
) -> None:
    """Checks that weights fit the model of the options, which is built without memory: wrong options cannot allocate
    large models.

    Raises:
        RamifyError: the weights do not fit such a model.
    """
    misfit = f"the weights in {where} do not fit the model they belong to"
    fix = "use the files as `ramify` wrote them, or another copy"
    direct = options.force_head.layers if options.force_head.kind == "direct" else 0
    layers = max(options.encoder.layers, options.energy_head.layers, direct)
    if layers > (most := max(map(len, by_part(weights).values()), default=0)):
        # layers without memory still take time to create
        raise RamifyError(f"{misfit}: {layers} layers, but no part has more than {most} tensors", fix=fix)
    try:
        with torch.inference_mode(False), torch.device("meta"):
            expected = build_parts(options, branches).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # PyTorch: the size in bytes is no 64-bit integer
        raise RamifyError(f"{misfit}: {str(error).splitlines()[0][:200]}", fix=fix) from error
    wrong = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    wrong += [f"{name} is not in the model" for name in weights.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(empty.shape)}"
        for name, empty in expected.items()
        if name in weights and weights[name].shape != empty.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise RamifyError(f"{misfit}: {min(wrong)}{more}", fix=fix)
