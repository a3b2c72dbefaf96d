"""Learning rates by hand, groups of parameters, steps of AdamW and Muon, averages against a plain loop."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from ramify.batches.sampling import RULES
from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_model
from ramify.model.lora import add_lora
from ramify.recipe import ObjectiveOptions, OptimizerOptions, ScheduleOptions, TrainOptions, parse_recipe
from ramify.train.optimization.loss_terms import FORMS
from ramify.train.optimization.optimizer import AveragedWeights, build_optimizer, guard
from ramify.train.optimization.optimizers import OPTIMIZERS, orthogonalised
from ramify.train.optimization.schedules import SCHEDULES, Schedule


def test_cosine_by_hand() -> None:
    """Rises over 4 steps, then half a period of the cosine over 100 steps, down to a tenth."""
    schedule = Schedule(ScheduleOptions(kind="cosine", warmup_steps=4, final=0.1), base=2e-3, total_steps=100)
    assert schedule.rate(0) == pytest.approx(2e-3 / 4)
    assert schedule.rate(1) == pytest.approx(2e-3 / 2 * (0.1 + 0.45 * (1 + math.cos(math.pi / 100))))
    assert schedule.rate(50) == pytest.approx(2e-3 * 0.55)
    assert schedule.rate(25) == pytest.approx(2e-3 * (0.1 + 0.9 * (0.5 + 0.5 / math.sqrt(2))))
    assert schedule.rate(100) == pytest.approx(2e-4)
    assert schedule.rate(500) == pytest.approx(2e-4)


def test_constant_with_and_without_warmup() -> None:
    rising = Schedule(ScheduleOptions(kind="constant", warmup_steps=10), base=1.0, total_steps=50)
    assert [rising.rate(step) for step in (0, 4, 9, 10, 49)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    flat = Schedule(ScheduleOptions(kind="constant", warmup_steps=0), base=0.3, total_steps=50)
    assert {flat.rate(step) for step in range(50)} == {0.3}


def test_plateau_by_hand() -> None:
    """Patience 1: the second evaluation in a row without a better metric halves the rate, not below a fifth."""
    options = ScheduleOptions(kind="plateau", warmup_steps=0, factor=0.5, patience=1, final=0.2)
    schedule = Schedule(options, base=1.0, total_steps=1000)
    rates = []
    for metric in (3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.9, 1.9, 1.95, 1.0):
        schedule.observe(metric)
        rates.append(schedule.rate(10))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]


def test_a_metric_that_is_not_a_number_is_no_better() -> None:
    schedule = Schedule(ScheduleOptions(kind="plateau", warmup_steps=0, patience=0), base=1.0, total_steps=10)
    schedule.observe(math.nan)
    assert (schedule.rate(0), schedule.best) == (0.5, math.inf)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(0, 29))
def test_plateau_goes_on_from_its_state(metrics: list[float], cut: int) -> None:
    options = ScheduleOptions(kind="plateau", warmup_steps=0, patience=2)
    whole, first = Schedule(options, 1.0, 10), Schedule(options, 1.0, 10)
    for metric in metrics:
        whole.observe(metric)
    for metric in metrics[:cut]:
        first.observe(metric)
    second = Schedule(options, 1.0, 10)
    second.restore(first.state())
    for metric in metrics[cut:]:
        second.observe(metric)
    assert second.state() == whole.state()


def test_only_linear_maps_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1, bias=False))
    optimizer = build_optimizer(model, OptimizerOptions(lr=0.1, weight_decay=0.25, betas=(0.8, 0.95)))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {
        "0.weight": 0.0, "1.weight": 0.25, "1.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0, "3.weight": 0.25
    }  # fmt: skip
    assert {(g["lr"], g["betas"]) for g in optimizer.param_groups} == {(0.1, (0.8, 0.95))}


def test_adamw_step_by_hand() -> None:
    """Loshchilov & Hutter, arXiv:1711.05101, algorithm 2: decay apart from the gradient; three steps in numpy."""
    options = OptimizerOptions(lr=0.1, weight_decay=0.2, betas=(0.8, 0.95))
    model = nn.Linear(2, 1, bias=False).double()
    w = model.weight.detach().numpy().copy()
    optimizer = build_optimizer(model, options)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, gradient in enumerate(np.array([[[1.0, -2.0]], [[0.5, 0.1]], [[-3.0, 0.0]]]), start=1):
        model.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        w = w - 0.1 * 0.2 * w - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [0.1, 1e3, None])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_guarded_steps_are_clipped(limit: float | None, dtype: torch.dtype, kind: Any) -> None:
    """As by `clip_grad_norm_`, whether there is something to clip or not; gradients are left as they were used."""
    ours, theirs = (nn.Linear(9, 12, dtype=dtype) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizers = [build_optimizer(model, OptimizerOptions(kind=kind, lr=0.1)) for model in (ours, theirs)]
    for seed in range(3):
        torch.manual_seed(seed)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        guard(
            optimizers[0], torch.stack([p.grad.norm() for p in ours.parameters() if p.grad is not None]).norm(), limit
        )
        if limit is not None:
            nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_nothing(norm: float, kind: Any) -> None:
    """To the bit, counters of steps included; the next one is taken."""
    model = nn.Linear(9, 12)
    optimizer = build_optimizer(model, OptimizerOptions(kind=kind, lr=0.1))

    def step(gradient: float, norm: float) -> dict[str, torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        guard(optimizer, torch.tensor(norm, dtype=torch.float64), 1.0)
        optimizer.step()
        moments = {f"{k}.{n}": t.clone() for k, s in enumerate(optimizer.state.values()) for n, t in s.items()}
        return moments | {name: tensor.clone() for name, tensor in model.state_dict().items()}

    before = step(0.5, 0.5)
    after = step(norm, norm)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = step(0.5, 0.5)
    assert not any(torch.equal(again[name], after[name]) for name in again)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_averages_against_a_plain_loop(decay: float) -> None:
    model = nn.Linear(3, 2).double()
    averages = AveragedWeights(model, decay)
    rng = np.random.default_rng(0)
    expected = [p.detach().numpy().copy() for p in model.parameters()]
    for update in range(200):
        for k, parameter in enumerate(model.parameters()):
            value = rng.normal(size=tuple(parameter.shape))
            parameter.data = torch.from_numpy(value)
            keep = min(decay, (1 + update) / (10 + update))
            expected[k] = keep * expected[k] + (1 - keep) * value
        averages.update(update)
    for average, by_hand in zip(averages.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), by_hand, rtol=0, atol=1e-14)


def test_without_decay_the_averages_are_the_weights() -> None:
    model = nn.Linear(3, 2)
    averages = AveragedWeights(model, 0.0)
    for _ in range(2):
        with torch.no_grad():
            model.weight.add_(1.0)
        averages.update(0)
        assert averages.averages[0].data_ptr() == model.weight.data_ptr()  # no memory of their own
        before = model.weight.detach().clone()
        averages.swap()
        assert torch.equal(model.weight, before)


def test_swapping_twice_puts_everything_back() -> None:
    model = nn.Linear(3, 2)
    averages = AveragedWeights(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    weights = [p.detach().clone() for p in model.parameters()]
    kept = [a.clone() for a in averages.averages]
    averages.swap()
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), kept, strict=True))
    assert all(torch.equal(a, w) for a, w in zip(averages.averages, weights, strict=True))
    averages.swap()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert all(torch.equal(a, k) for a, k in zip(averages.averages, kept, strict=True))


def test_a_matrix_becomes_nearly_orthogonal() -> None:
    """Singular values near one, singular vectors kept; also of a tall matrix whose directions differ by 1000 times."""
    torch.manual_seed(0)
    for shape in ((12, 30), (30, 12), (16, 16)):
        u, _, vt = torch.linalg.svd(torch.randn(*shape, dtype=torch.float64), full_matrices=False)
        spread = torch.logspace(-1.5, 0, min(shape), dtype=torch.float64)
        found = orthogonalised(u @ torch.diag(spread) @ vt)
        values = torch.diagonal(u.T @ found @ vt.T)
        torch.testing.assert_close(found, u @ torch.diag(values) @ vt, rtol=0, atol=1e-9)
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3
    assert torch.equal(orthogonalised(torch.zeros(9, 9)), torch.zeros(9, 9))


def test_muon_steps_as_pytorchs_own() -> None:
    """`torch.optim.Muon`, which rounds to bfloat16, with decay, over several steps; and AdamW on the bias."""
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(20, 12).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, OptimizerOptions(kind="muon", lr=0.05, weight_decay=0.2, momentum=0.9))
    own = torch.optim.Muon(
        [theirs.weight], lr=0.05, weight_decay=0.2, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    rest = torch.optim.AdamW([theirs.bias], lr=0.05, weight_decay=0.0, betas=(0.9, 0.999))
    before = ours.weight.detach().clone()
    for seed in range(4):
        torch.manual_seed(seed)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for each in (optimizer, own, rest):
            each.step()
    moved = float((theirs.weight - before).norm().detach())
    assert float((ours.weight - theirs.weight).norm().detach()) < 0.02 * moved
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-12, atol=1e-12)


def test_muon_takes_hidden_matrices_only() -> None:
    """No biases, no embedding, no outputs of heads, no halves of low-rank updates."""
    recipe = parse_recipe({"datasets": {"a": {"format": "extxyz", "path": "a.xyz"}}}, "test")
    model = build_model(recipe, {"a": LabelSpread(1.0, 1.0, 10)})
    add_lora(model.encoder.layers[0], 8, 0)  # type: ignore[operator,index,arg-type]
    optimizer = build_optimizer(model, OptimizerOptions(kind="muon"))
    hidden = {id(p) for group in optimizer.param_groups if group["hidden"] for p in group["params"]}
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    for name, parameter in names.items():
        head_output = name.startswith("branches") and parameter.shape[0] == 1
        small = parameter.ndim != 2 or min(parameter.shape) < 8
        other = "embedding" in name or "low_rank" in name or head_output or small
        assert (id(parameter) in hidden) is not other, name
    assert len(hidden) > 10


def test_rules_of_the_recipe_are_those_of_the_code() -> None:
    """Every name that a recipe accepts has its function, and vice versa."""

    def words(options: type[BaseModel], key: str) -> set[str]:
        found: set[str] = set()
        for kind in (options.model_fields[key].annotation, *get_args(options.model_fields[key].annotation)):
            found |= {word for word in get_args(kind) if isinstance(word, str)}
        return found

    assert words(OptimizerOptions, "kind") == set(OPTIMIZERS)
    assert words(ScheduleOptions, "kind") == set(SCHEDULES)
    assert words(ObjectiveOptions, "form") == set(FORMS)
    assert words(TrainOptions, "sampling") == set(RULES)


def test_muon_and_a_sharded_encoder_do_not_go_together() -> None:
    content = {"datasets": {"a": {"format": "extxyz", "path": "a.xyz"}}, "optimizer": {"kind": "muon"}}
    with pytest.raises(RamifyError, match=r"optimizer.kind: muon.*parallel.shard: encoder"):
        parse_recipe(content | {"parallel": {"shard": "encoder"}}, "test")
