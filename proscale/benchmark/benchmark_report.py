"""What the benchmarks found, as Markdown tables and for JSON."""

from collections.abc import Mapping, Sequence

from proscale.benchmark.latency import TOTAL, Timing
from proscale.benchmark.model_benchmark import ModelTimes
from proscale.benchmark.operator_benchmark import BASELINE, OperatorTimes
from proscale.cost.tables import markdown_table


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


def latency_table(times: Mapping[str, ModelTimes], batch: int) -> str:
    """A row for every model and part, with its time relative to the first model's."""
    first = next(iter(times.values())).times
    rows = []
    for name, found in times.items():
        for part, timing in found.times.items():
            ratio = f"{timing.median / first[part].median:.2f}" if part in first else ""
            row = [name, part, *_milliseconds(timing), ratio]
            if part == TOTAL:
                row += [f"{batch / timing.median:.2f}", _mebibytes(found.peak_memory)]
            rows.append(row)
    headers = ["model", "part", "ms", "quartiles", "vs first", "images/s", "peak memory, MiB"]
    return _table(rows, headers)


def speed_table(times: Mapping[str, ModelTimes], batch: int, peak: float) -> str:
    """Operations per second of every part of the network, where they were counted.

    Args:
        times: of inference, by model.
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
        for name, found in times.items()
        for part, speed in _speeds(found, batch, peak).items()
    ]
    headers = ["model", "part", "G multiply-adds an image", "GFLOP/s", "of fp32 peak"]
    return _table(rows, headers)


def plain_table(
    times: Mapping[str, tuple[ModelTimes, ModelTimes]],
    differences: Mapping[str, Mapping[str, float]],
) -> str:
    """A row for every model: how much faster and smaller it is than the plain path, and how far
    its results are from that path's.

    Args:
        times: of the model and of the plain path, by model.
        differences: by model and kind of result; none in training.
    """
    rows = []
    for name, (fast, plain) in times.items():
        speed_up = plain.times[TOTAL].median / fast.times[TOTAL].median
        rows.append(
            [
                name,
                *(f"{1e3 * one.times[TOTAL].median:.4g}" for one in (plain, fast)),
                f"{speed_up:.2f}x",
                *(_mebibytes(one.peak_memory) for one in (plain, fast)),
                ", ".join(f"{kind} {far:.1e}" for kind, far in differences.get(name, {}).items()),
            ]
        )
    headers = ["model", "plain, ms", "ms", "speed-up", "plain, MiB", "MiB", "results differ by"]
    return _table(rows, headers)


def _speeds(found: ModelTimes, batch: int, peak: float) -> dict[str, dict[str, float]]:
    """Speed by part of the network, and of the network as a whole. A multiply-add is two
    floating-point operations."""
    speeds = {}
    for part, multiply_adds in found.multiply_adds.items():
        flops_per_second = 2 * batch * multiply_adds / found.times[part].median
        speeds[part] = {
            "multiply_adds": multiply_adds,
            "flops_per_second": flops_per_second,
            "share_of_fp32_peak": flops_per_second / peak,
        }
    return speeds


def times_as_dict(found: ModelTimes, batch: int, peak: float) -> dict:
    """For JSON: seconds, bytes, operations per second; arguments as for :func:`speed_table`."""
    return {
        "times": {part: timing.as_dict() for part, timing in found.times.items()},
        "images_per_second": batch / found.times[TOTAL].median,
        "peak_memory_bytes": found.peak_memory,
        "speed": _speeds(found, batch, peak),
    }


def _mebibytes(count: int | None) -> str:
    return "not on this system" if count is None else f"{count / 2**20:.0f}"


def _milliseconds(timing: Timing) -> tuple[str, str]:
    lower, upper = timing.quartiles
    return f"{1e3 * timing.median:.4g}", f"{1e3 * lower:.4g}–{1e3 * upper:.4g}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return markdown_table(rows, headers, text=("backend", "model", "part", "results differ by"))
