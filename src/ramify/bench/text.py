"""Benchmark results as lines of text."""

from collections.abc import Mapping
from typing import Any

from ramify.bench.limits import PRODUCT


def scale_line(case: Mapping[str, Any]) -> str:
    """One scaling case."""
    low, high = case["quartiles"]
    sent = max(sum(row["traffic"].values()) for row in case["rows"])
    held = max(sum(row["resident"].values()) for row in case["rows"])
    return (
        f"{case['mode']:6} {case['placement']:16} {case['ranks']:5} ranks  {case['seconds']:.4g} s/step "
        f"({low:.4g}-{high:.4g})  {case['structures_per_second']:.4g} structures/s  {sent / 1e6:.1f} MB sent, "
        f"{held / 1e6:.0f} MB on the fullest rank"
        + "".join(f"; {note}" for note in _slow_products(case["rows"][0]["limits"]))
    )


def step_lines(case: Mapping[str, Any]) -> list[str]:
    """One case of `bench step`, with its phases and, if profiled, its most expensive operations."""
    low, high = case["quartiles"]
    whole = sum(case["phases"].values())
    phases = ", ".join(f"{name} {100 * seconds / whole:.1f} %" for name, seconds in case["phases"].items() if seconds)
    memory = case["memory"]
    compiled = ""
    if case["compile"] != "none":
        share = {of: f"{100 * part:.1f} %" for of, part in case["padding"].items()}
        compiled = f", compile {case['compile']} (padding {share['atoms']} of atoms, {share['edges']} of edges)"
    lines = [
        f"{case['precision']} {case['forces']}, checkpointing {case['checkpointing']}{compiled}, "
        f"{case['threads']} threads: {case['seconds']:.4g} s/step ({low:.4g}-{high:.4g}), "
        f"{case['structures_per_second']:.4g} structures/s, {case['edges_per_second']:.4g} edges/s",
        f"  {case['flops'] / 1e9:.4g} GFLOP/s of {case['product_flops'] / 1e9:.4g} in a matrix product: "
        f"{100 * case['ratio']:.1f} %",
        *(f"  {note}" for note in _slow_products(case)),
        f"  {phases}",
        f"  memory: {memory['step'] / 1e6:.0f} MB by model and step, {memory['peak'] / 1e6:.0f} MB by the process",
    ]
    for row in case.get("most_expensive", ()):
        lines.append(f"  {100 * row['share']:5.1f} %  {row['calls']:4} x {row['operation']} {row['shapes']}")
    return lines


def _slow_products(found: Mapping[str, Any]) -> list[str]:
    """A note that a smaller matrix product was measured. Results of older versions do not state its size."""
    size = found.get("product_size", PRODUCT)
    if size == PRODUCT:
        return []
    return [f"bf16 is slower than fp32 on this device: the product measured has {size} rows instead of {PRODUCT}"]


def memory_line(row: Mapping[str, Any]) -> str:
    """Measured memory of one layout."""
    there = "one rank alone" if row["alone"] else f"all {row['ranks']} ranks"
    return (
        f"{row['placement']:12} {row['branches']:3} branches, {row['hosted']:3} on the rank: "
        f"{row['process'] / 1e6:8.1f} MB, tensors {row['tensors'] / 1e6:8.1f} MB, "
        f"planned {row['planned'] / 1e6:8.1f} MB "
        f"({100 * (row['process'] / row['planned'] - 1):+.1f} %); {there}"
    )


def memory_summary(content: Mapping[str, Any]) -> str:
    """Growth of the memory with the number of branches."""
    lines = [f"largest difference from the plan: {100 * content['largest_error_of_plan']:.1f} %"]
    for placement, found in content.items():
        if isinstance(found, Mapping) and "bytes_per_branch" in found:
            lines.append(
                f"{placement}: {found['bytes_per_branch'] / 1e6:.2f} MB more per branch "
                f"(a whole branch has {found['whole_branch'] / 1e6:.2f} MB); "
                f"the most is {100 * found['spread']:.1f} % above the least"
            )
    return "\n".join(lines)


def check_lines(checked: Mapping[str, Any]) -> list[str]:
    """Errors of the cost model."""
    speed = checked["speed"]
    lines = [
        f"one rank: {1e3 * speed['step']:.3g} ms per step, {1e3 * speed['branch']:.3g} ms per branch, "
        f"{1e-9 / speed['operation'] if speed['operation'] else 0:.3g} GFLOP/s, "
        f"{1e9 * speed['parameter']:.3g} ns per parameter updated"
    ]
    for row in checked["checked"]:
        lines.append(
            f"{row['mode']:6} {row['placement']:16} {row['ranks']:4} ranks: measured {row['measured']:.4g} s, "
            f"predicted {row['predicted']:.4g} s ({100 * row['error']:+.1f} %)"
        )
    return lines


def prediction_lines(content: Mapping[str, Any]) -> list[str]:
    """Predicted times, and the sizes from which on per-branch is faster."""
    placements = list(content["scaling"][0]["seconds"])
    lines = [f"{content['machine']['name']}: ms per step", " " * 14 + "".join(f"{name:>18}" for name in placements)]
    for row in content["scaling"]:
        values = "".join(f"{1e3 * row['seconds'][name]:18.4g}" for name in placements)
        lines.append(f"{row['mode']:6} {row['ranks']:5}  {values}")
    for row in content["branches"]:
        values = "".join(f"{1e3 * row['seconds'][name]:18.4g}" for name in placements)
        lines.append(f"{row['branches']:3} branches  {values}")
    for what, wins in content["wins"].items():
        for placement, first in wins.items():
            unit = "branches" if what == "branches" else "ranks"
            where = "nowhere" if first is None else f"from {first} {unit} on"
            title = f"{content['branches'][0]['ranks']} ranks" if what == "branches" else f"{what} scaling"
            lines.append(f"{title}: {placement} is faster than replicated {where}")
    return lines
