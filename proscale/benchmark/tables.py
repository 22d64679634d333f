"""Times of models as Markdown tables and for JSON."""

from collections.abc import Mapping

from proscale.benchmark.latency import TOTAL, Timing
from proscale.benchmark.models import ModelTimes
from proscale.cost.tables import markdown_table


def latency_table(times: Mapping[str, ModelTimes], batch: int) -> str:
    """A row for every model and part, with its time relative to the first model's."""
    first = next(iter(times.values())).times
    rows = []
    for name, found in times.items():
        # Models may have different parts: a semantic head has no encoder.
        for part, timing in found.times.items():
            ratio = f"{timing.median / first[part].median:.2f}" if part in first else ""
            row = [name, part, *milliseconds(timing), ratio]
            if part == TOTAL:
                row += [f"{batch / timing.median:.2f}", mebibytes(found.peak_memory)]
            rows.append(row)
    headers = ["model", "part", "ms", "quartiles", "vs first", "images/s", "peak memory, MiB"]
    return markdown_table(rows, headers, text=("model", "part"))


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
    return markdown_table(rows, headers, text=("model", "part"))


def times_as_dict(found: ModelTimes, batch: int, peak: float) -> dict:
    """For JSON: seconds, bytes, operations per second; arguments as for :func:`speed_table`."""
    return {
        "times": {part: timing.as_dict() for part, timing in found.times.items()},
        "images_per_second": batch / found.times[TOTAL].median,
        "peak_memory_bytes": found.peak_memory,
        "speed": _speeds(found, batch, peak),
    }


def milliseconds(timing: Timing) -> tuple[str, str]:
    """Median and quartiles."""
    lower, upper = timing.quartiles
    return f"{1e3 * timing.median:.4g}", f"{1e3 * lower:.4g}–{1e3 * upper:.4g}"


def mebibytes(count: int | None) -> str:
    """A number of bytes, which some systems do not know."""
    return "not on this system" if count is None else f"{count / 2**20:.0f}"


def _speeds(found: ModelTimes, batch: int, peak: float) -> dict[str, dict[str, float]]:
    """Speed by part of the network, and of the network as a whole."""
    speeds: dict[str, dict[str, float]] = {}
    for part, multiply_adds in found.multiply_adds.items():
        # A multiply-add is two floating-point operations.
        flops_per_second = 2 * batch * multiply_adds / found.times[part].median
        speeds[part] = {
            "multiply_adds": multiply_adds,
            "flops_per_second": flops_per_second,
            "share_of_fp32_peak": flops_per_second / peak,
        }
    return speeds
