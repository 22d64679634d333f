"""What the benchmarks found, as Markdown tables and for JSON."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from proscale.analysis.latency import TOTAL, Timing
from proscale.analysis.model_benchmark import NETWORK, ModelCost
from proscale.analysis.operator_benchmark import BASELINE, OperatorTimes


def operator_table(times: OperatorTimes) -> str:
    """A row for every backend, with its speed-up over the baseline; then who refused and why."""
    baseline = times.by_backend[BASELINE]
    rows = []
    for name, modes in times.by_backend.items():
        row = [name]
        for mode, timing in modes.items():
            speed_up = baseline[mode].median / timing.median
            row += [*_milliseconds(timing), f"{speed_up:.2f}x"]
        rows.append(row)
    headers = ["backend"]
    for mode in baseline:
        headers += [f"{mode}, ms", "quartiles", "speed-up"]
    refused = [f"\n{name} refused: {reason}" for name, reason in times.refused.items()]
    return _table(rows, headers) + "".join(refused)


def latency_table(costs: Mapping[str, ModelCost], batch: int) -> str:
    """A row for every model and part, with its time relative to the first model's."""
    first = next(iter(costs.values()))
    rows = []
    for name, cost in costs.items():
        for part, timing in cost.times.items():
            ratio = timing.median / first.times[part].median
            row = [name, part, *_milliseconds(timing), f"{ratio:.2f}"]
            if part == TOTAL:
                memory = cost.peak_memory
                row += [
                    f"{batch / timing.median:.2f}",
                    "not on this system" if memory is None else f"{memory / 2**20:.0f}",
                ]
            rows.append(row)
    headers = ["model", "part", "ms", "quartiles", "ratio", "images/s", "peak memory, MiB"]
    return _table(rows, headers)


def speed_table(costs: Mapping[str, ModelCost], batch: int, peak: float) -> str:
    """Operations per second of every part of the network.

    Args:
        costs: of inference, by model.
        batch: images per call.
        peak: float32 operations per second that the machine reaches.
    """
    rows = [
        [
            name,
            part,
            f"{speed['multiply_adds'] / 1e9:.1f}",
            f"{speed['flops_per_second'] / 1e9:.0f}",
            f"{100 * speed['share_of_fp32_peak']:.0f} %",
        ]
        for name, cost in costs.items()
        for part, speed in _speeds(cost, batch, peak).items()
    ]
    headers = ["model", "part", "G multiply-adds an image", "GFLOP/s", "of fp32 peak"]
    return _table(rows, headers)


def _speeds(cost: ModelCost, batch: int, peak: float) -> dict[str, dict[str, float]]:
    """Speed by part of the network, and of the network as a whole. A multiply-add is two
    floating-point operations."""
    parts = {part: (cost.multiply_adds[part], cost.times[part].median) for part in NETWORK}
    parts["network"] = tuple(map(sum, zip(*parts.values(), strict=True)))
    return {
        part: {
            "multiply_adds": multiply_adds,
            "flops_per_second": 2 * batch * multiply_adds / seconds,
            "share_of_fp32_peak": 2 * batch * multiply_adds / seconds / peak,
        }
        for part, (multiply_adds, seconds) in parts.items()
    }


def cost_as_dict(cost: ModelCost, batch: int, peak: float) -> dict:
    """For JSON: seconds, bytes, operations per second; arguments as for :func:`speed_table`."""
    return {
        "times": {part: timing.as_dict() for part, timing in cost.times.items()},
        "images_per_second": batch / cost.times[TOTAL].median,
        "peak_memory_bytes": cost.peak_memory,
        "speed": _speeds(cost, batch, peak) if cost.multiply_adds else {},
    }


def _milliseconds(timing: Timing) -> tuple[str, str]:
    lower, upper = timing.quartiles
    return f"{1e3 * timing.median:.4g}", f"{1e3 * lower:.4g}–{1e3 * upper:.4g}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Markdown."""
    text = ("backend", "model", "part")
    alignment = ["left" if header in text else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)
