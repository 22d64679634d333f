"""All that needs a GPU, tried and timed by one command, which writes docs/gpu.md and a JSON.

Every part is a process of its own with a time limit, so that one which fails, hangs or spoils its
CUDA context hides no other. The page holds what each part printed, and the goals with the numbers
that decide them. With --device cpu the parts run on this machine's CPU, without Triton, which tries
the command itself.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from proscale.benchmark.latency import device_clock, measure
from proscale.benchmark.machine import describe_machine
from proscale.benchmark.models import ModelRun, ModelSettings, precision
from proscale.cli.arguments import find_device, positive
from proscale.config import setup_cfg
from proscale.cost.tables import markdown_table, write_json
from proscale.engine.optimizer import build_optimizer
from proscale.ops import available_backends
from proscale.utils.whole_files import write_text
from proscale_cli import errors_in_one_sentence

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu.md"
COCO = "configs/coco/panoptic"
DEMO = "configs/demo/proscale_r18_111.yaml"
MODELS = ("mask2former_r50", "proscale_r50_333", "proscale_r50_111", "rt_m2f_r50")
SWIN = ("mask2former_swin_tiny", "proscale_swin_tiny_333", "rt_m2f_swin_tiny")
LEVELS = "20x20,40x40,80x80"  # strides 32, 16, 8 of 640x640
#: The command ``proscale``, as arguments of this Python.
PROSCALE = ("-c", "from proscale_cli import main; main()")
MOST_CHARACTERS = 6000  # of a part's output on the page
STEPS = 20
#: How far the losses of a step by mixed precision may be from the CPU's, relative.
LOSS_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Part:
    """A command of the check.

    Attributes:
        title: heading on the page.
        command: arguments of this Python; ``{json}`` is a file for its numbers.
        seconds: its limit.
        on_cpu: it can be tried without a GPU.
    """

    title: str
    command: tuple[str, ...]
    seconds: int
    on_cpu: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a part printed, and how it ended: ``passed``, ``failed`` or ``stopped``."""

    part: Part
    status: str
    seconds: float
    output: str
    numbers: Mapping[str, Any]


def list_parts(device: str, is_small: bool) -> dict[str, Part]:
    """All parts by name, in the order of their weight; ``is_small`` takes small inputs."""
    on, me = ("--device", device), "benchmarks/gpu_check.py"
    size, large = ("64x64", "64x96") if is_small else ("640x640", "800x1280")
    image = "64x64" if is_small else "1024x1024"
    levels = "4x4,8x8,16x16" if is_small else LEVELS
    # Few repeats, many models: the medians of the operators count more than those.
    few = ("--repeats", "1" if is_small else "5")
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    operator = ("benchmarks/deformable_attention.py", *on, *few, "--sizes", levels)
    benchmark = (*PROSCALE, "benchmark", *on, *few, "--json", "{json}")
    files = tuple(f"{COCO}/{name}.yaml" for name in MODELS)
    swin = tuple(f"{COCO}/{name}.yaml" for name in SWIN)
    parts = {
        "operators": Part(
            "Operators against their reference: forward, backward, number formats, odd shapes",
            (*pytest, "tests/ops"),
            *(120, not is_small),
        ),
        "golden": Part(
            "Golden numbers",
            (*pytest, "-k", "published", "tests/modeling"),
            *(90, not is_small),
        ),
        "losses": Part(
            f"Losses of {STEPS} training steps by mixed precision against the CPU's",
            (me, "--part", "losses", *on, "--json", "{json}"),
            60,
        ),
        "operator": Part(
            "Deformable attention, float32",
            (*operator, "--json", "{json}"),
            30,
        ),
        "operator in bfloat16": Part(
            "Deformable attention, bfloat16",
            (*operator, "--dtype", "bfloat16", "--json", "{json}"),
            30,
        ),
        "key-aware operator": Part(
            "Key-aware deformable attention, float32",
            (*operator, "--key-aware", "--json", "{json}"),
            30,
        ),
        "memory": Part(
            "The operator against the time that its bytes take",
            (me, "--part", "memory", *on, "--json", "{json}"),
            20,
        ),
        "models": Part(
            f"ResNet-50, {size}, one image, results included",
            (*benchmark, "--dtype", "fp32", "bf16", "--size", size, "--config-file", *files),
            90,
        ),
        "synchronisations": Part(
            "Where inference waits for the device",
            (me, "--part", "synchronisations", *on),
            30,
            on_cpu=False,
        ),
        "merging": Part(
            "Mix Transformer b5 with merged tokens, backbone alone",
            (
                *("benchmarks/merging.py", *on, *few, "--json", "{json}", "--variants"),
                *("b0" if is_small else "b5", "--sizes", image),
            ),
            60,
        ),
        "processes": Part(
            "Training in a process for every GPU (NCCL)",
            (me, "--part", "processes"),
            60,
            on_cpu=False,
        ),
        "compiled": Part(
            f"ResNet-50, {size}, one image, compiled",
            (*benchmark, "--compile", "--size", size, "--config-file", files[2]),
            90,
            on_cpu=False,
        ),
        "batch": Part(
            f"ResNet-50, {size}, eight images",
            (*benchmark, "--dtype", "bf16", "--batch", "8", "--size", size, "--config-file")
            + files,
            60,
        ),
        "Swin": Part(
            f"Swin-T, {large}, one image",
            (*benchmark, "--dtype", "bf16", "--size", large, "--config-file", *swin),
            60,
        ),
        "peer": Part(
            f"Beside Hugging Face's Mask2Former, Swin-T, {size}",
            (
                *("benchmarks/models.py", *on, *few, "--json", "{json}", "--size", size),
                *("--peer", "transformers", "--config-file", swin[0]),
            ),
            60,
        ),
    }
    if device == "cpu":
        return {name: part for name, part in parts.items() if part.on_cpu}
    return parts


def run_part(part: Part, device: str, seconds: float) -> Outcome:
    """Run a part for at most ``seconds``, or its own limit."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "numbers.json"
        command = [word.replace("{json}", str(file)) for word in part.command]
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"PROSCALE_GOLDEN_DEVICE": device},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=min(seconds, part.seconds))
            status = "passed" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            # With the processes that it has started: they hold the device, and the pipe.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = "stopped"
        numbers = json.loads(file.read_text()) if file.is_file() else {}
        return Outcome(part, status, time.monotonic() - started, output, numbers)


def losses(device: torch.device) -> dict:
    """The largest relative difference of the losses of the same steps, from the same weights on the
    same images, between the CPU in float32 and ``device`` by mixed precision.

    The steps on the device begin from the CPU's weights each, so that a difference is one step's
    and not the sum of all before.

    Raises:
        SystemExit: it is more than ``LOSS_TOLERANCE``.
    """
    runs: dict[str, ModelRun] = {}
    sums: dict[str, torch.Tensor] = {}
    for name, dtype in (("cpu", "fp32"), (device.type, "bf16")):
        cfg = setup_cfg(str(ROOT / DEMO), ["MODEL.DEVICE", name])
        runs[dtype] = ModelRun(cfg, ModelSettings((128, 128), 2, dtype, train=True))
    reference, mixed = runs["fp32"], runs["bf16"]
    optimizer = build_optimizer(reference.cfg, reference.model)
    rows, worst = [], 0.0
    for step in range(STEPS):
        mixed.model.load_state_dict(reference.model.state_dict())
        for dtype, run in runs.items():
            torch.manual_seed(step)
            with RandomNumbersOfCpu(), precision(run.device, dtype):
                sums[dtype] = torch.stack(tuple(run.model(run.batch).values())).sum()
        difference = abs(sums["bf16"].item() / sums["fp32"].item() - 1)
        rows.append([str(step), f"{sums['fp32']:.4f}", f"{sums['bf16']:.4f}", f"{difference:.1e}"])
        worst = max(worst, difference)
        optimizer.zero_grad()
        sums["fp32"].backward()
        optimizer.step()
    headers = ["step", "CPU, fp32", f"{device.type}, bf16", "difference"]
    print(markdown_table(rows, headers, text=()))
    if not worst <= LOSS_TOLERANCE:
        raise SystemExit(f"losses differ by {worst:.1e}: expected at most {LOSS_TOLERANCE:g}")
    return {"largest_difference": worst}


class RandomNumbersOfCpu(TorchFunctionMode):
    """Within it random numbers are drawn on the CPU: generators of other devices draw others."""

    def __torch_function__(
        self, function: Callable, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.rand, torch.randn, torch.randperm) and "device" in kwargs:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


def memory(device: torch.device) -> dict:
    """The fastest backend's time over that of copying as many bytes as it must read and write."""
    # The benchmark beside this file; its folder is on the path of this script.
    from deformable_attention import (
        FORWARD,
        OperatorSettings,
        benchmark_operator,
        operator_inputs,
    )

    shapes = [(20, 20), (40, 40), (80, 80)]
    rows, numbers = [], {}
    for dtype in ("float32", "bfloat16"):
        settings = OperatorSettings(shapes, 8, 32, 4, dtype, near=True, device=device)
        value, *places = operator_inputs(settings)
        # Values once in and results once out; locations and weights once in.
        count = 2 * value.nbytes + sum(tensor.nbytes for tensor in places)
        source = torch.empty(count // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)

        def copy(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            target.copy_(source)

        clock = device_clock(device)
        copied = measure({"copy": copy}, repeats=20, warmup=5, clock=clock)["copy"].median
        times = benchmark_operator(settings, available_backends(), repeats=20)
        best = min(times.by_backend, key=lambda name: times.by_backend[name][FORWARD].median)
        taken = times.by_backend[best][FORWARD].median
        cells = [best, f"{count / 2**20:.1f}", f"{1e3 * copied:.3g}", f"{1e3 * taken:.3g}"]
        rows.append([dtype, *cells, f"{taken / copied:.1f}"])
        numbers[dtype] = {"bytes": count, "copy": copied, "operator": taken}
    headers = ["values", "backend", "MiB", "copy, ms", "operator, ms", "operator / copy"]
    print(markdown_table(rows, headers, text=("values", "backend")))
    return numbers


def synchronisations(device: torch.device) -> dict:
    """Count the lines of this project at which inference waits for the device."""
    cfg = setup_cfg(str(ROOT / COCO / "proscale_r50_111.yaml"), ["MODEL.DEVICE", device.type])
    run = ModelRun(cfg, ModelSettings((640, 640), 1, "bf16"))
    run.results()
    with warnings.catch_warnings(record=True) as caught, _reported_synchronisations():
        warnings.simplefilter("always")
        run.results()
    lines = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught)
    rows = [[line, str(count)] for line, count in lines.most_common()]
    print(markdown_table(rows, ["line", "times an image"], text=("line",)))
    return {"lines": dict(lines)}


@contextmanager
def _reported_synchronisations():
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def processes(device: torch.device) -> dict:
    """Train the demo's model for some steps, with a process for every GPU.

    Raises:
        CalledProcessError: the training failed.
    """
    count = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        overrides = ("MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "10", "OUTPUT_DIR", folder)
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count))
        command = (*launcher, "train_net.py", "--config-file", DEMO, *overrides)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return {"processes": count}


OWN_PARTS = {
    "losses": losses,
    "memory": memory,
    "synchronisations": synchronisations,
    "processes": processes,
}


def list_goals(outcomes: Mapping[str, Outcome]) -> list[list[str]]:
    """A row for every goal: what was measured, the number, and whether it is reached."""

    def number(part: str, compute: Callable[[Mapping], float]) -> float | None:
        try:
            return compute(outcomes[part].numbers)
        except (KeyError, ValueError, ZeroDivisionError):
            return None  # the part has not run to its end

    def speed_up(numbers: Mapping) -> float:
        times = {name: modes["forward"]["median"] for name, modes in numbers["backends"].items()}
        return times.pop("reference") / min(times.values())

    def images_per_second(numbers: Mapping) -> float:
        models = numbers["models"]
        found = [m["images_per_second"] for k, m in models.items() if "proscale_r50_111" in k]
        return max(found)

    def preset(name: str) -> Callable[[Mapping], float]:
        def ratio(numbers: Mapping) -> float:
            (times,) = (result["runs"] for result in numbers["results"])
            return times["none"]["median"] / times[name]["median"]

        return ratio

    def per_copy(numbers: Mapping) -> float:
        return numbers["float32"]["operator"] / numbers["float32"]["copy"]

    rows: list[list[str]] = []
    for text, part, compute, goal, is_most in (
        ("operator over the time of its bytes, float32", "memory", per_copy, 2.0, True),
        ("reference over the operator, float32", "operator", speed_up, 5.0, False),
        ("R50 (1,1,1), images a second with results", "models", images_per_second, 128.0, False),
        ("b5, unmerged over bsm_hq", "merging", preset("bsm_hq"), 1.4, False),
        ("b5, unmerged over bsm_fast", "merging", preset("bsm_fast"), 1.7, False),
        ("b5, unmerged over n2d_2x2", "merging", preset("n2d_2x2"), 1.6, False),
    ):
        found = number(part, compute)
        bound = f"{'≤' if is_most else '≥'} {goal:g}"
        if found is None:
            rows.append([text, bound, "not measured", ""])
            continue
        is_reached = found <= goal if is_most else found >= goal
        rows.append([text, bound, f"{found:.2f}", "yes" if is_reached else "no"])
    return rows


def page(outcomes: Mapping[str, Outcome], device: torch.device) -> str:
    """The results as a page of the documentation."""
    machine = "; ".join(f"{name}: {value}" for name, value in describe_machine(device).items())
    rows = [[o.part.title, o.status, f"{o.seconds:.0f}"] for o in outcomes.values()]
    parts = [
        "# On a GPU\n",
        "Written by `make gpu-check` (`benchmarks/gpu_check.py`). " + machine + ".\n",
        markdown_table(list_goals(outcomes), ["goal", "", "measured", "reached"], text=("goal",)),
        "",
        markdown_table(rows, ["part", "result", "seconds"], text=("part", "result")),
    ]
    for outcome in outcomes.values():
        words = " ".join(outcome.part.command).replace(" ".join(PROSCALE), "proscale")
        # A failure's reason is at the end of what was printed.
        text = outcome.output.strip()[-MOST_CHARACTERS:]
        parts.append(f"\n## {outcome.part.title}\n\n`{words.replace(' --json {json}', '')}`\n")
        parts.append(f"```text\n{text}\n```" if text else "Nothing was printed.")
    return "\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the check; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    parser.add_argument("--part", choices=OWN_PARTS, help="one part, in this process")
    parser.add_argument("--minutes", type=positive, default=9, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="small inputs, without the tests")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, too")
    with errors_in_one_sentence("benchmarks/gpu_check.py"):
        run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Run one part or, each in a process, all."""
    device = find_device(options.device)
    if options.part:
        write_json(options.json, OWN_PARTS[options.part](device))
        return
    deadline = time.monotonic() + 60 * options.minutes
    outcomes: dict[str, Outcome] = {}
    for name, part in list_parts(options.device, options.small).items():
        left = deadline - time.monotonic()
        if left <= 0:
            outcomes[name] = Outcome(part, "not run, the time was over", 0, "", {})
        else:
            outcomes[name] = run_part(part, options.device, left)
        print(f"{name}: {outcomes[name].status}, {outcomes[name].seconds:.0f} s", flush=True)
        # Written after every part: what there is survives an end from outside.
        write_text(options.page, page(outcomes, device))
        numbers = {name: {"status": o.status, **o.numbers} for name, o in outcomes.items()}
        if options.json:
            document = {"machine": describe_machine(device), "parts": numbers}
            write_text(options.json, json.dumps(document, indent=2))
    failed = [name for name, outcome in outcomes.items() if outcome.status != "passed"]
    if failed:
        raise SystemExit(f"not passed: {', '.join(failed)}; {options.page} has their output")


if __name__ == "__main__":
    main()
