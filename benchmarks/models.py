"""Our models against the reference implementation, and against Hugging Face's Mask2Former.

Takes the options of ``proscale benchmark``, which has ours alone, and calls all models in turns in
one process. Results of ours in float32 must be those of the reference implementation.
"""

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec

import torch
from reference_implementation import TOLERANCE, differences, reference_implementation
from torch import nn

from proscale.benchmark.latency import TOTAL, Stopwatch, device_clock
from proscale.benchmark.machine import fp32_peak, print_header
from proscale.benchmark.models import (
    ModelRun,
    ModelSettings,
    ModelTimes,
    benchmark_models,
    list_tables,
    mebibytes,
    precision,
    times_as_dict,
)
from proscale.cli import benchmark
from proscale.cli.arguments import check_report_arguments, find_device, split_overrides
from proscale.cost.model_cost import BACKBONE, ENCODER_PART, TRANSFORMER_DECODER
from proscale.cost.tables import markdown_table, print_report
from proscale.errors import ConfigError
from proscale.utils.malloc import (
    can_disable_malloc_trim,
    disable_malloc_trim,
    enable_malloc_trim,
)
from proscale_cli import errors_in_one_sentence, parse

KEEPERS = ("ours", "all", "none")
REFERENCE = " (reference)"
PEER = "transformers_mask2former_swin_tiny"
NUM_CLASSES = 133  # of COCO panoptic, as in our configurations
SIZE_DIVISIBILITY = 32


class ReferenceRun(ModelRun):
    """The same model by the reference implementation."""

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with reference_implementation(self.model):
            super().__call__(watch)

    def results(self) -> list[dict]:
        """Results of the images, by inference."""
        with reference_implementation(self.model):
            return super().results()


class PeerRun(ModelRun):
    """Hugging Face's Mask2Former with Swin-T and random weights: the model alone.

    Built from configuration classes, so that nothing is downloaded. It ends, as our network does,
    in classes and masks, and predicts after every decoder layer, too.

    Args:
        device: where to run.
        settings: as for ours; there is no training.

    Raises:
        ConfigError: ``settings`` asks for training.
    """

    def __init__(self, device: torch.device, settings: ModelSettings):
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

        if settings.train:
            raise ConfigError("--peer is compared at inference only: leave out --train")
        torch.manual_seed(0)
        self.settings, self.device = settings, device
        swin = SwinConfig(
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=7,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = Mask2FormerConfig(backbone_config=swin, num_labels=NUM_CLASSES)
        self.model = Mask2FormerForUniversalSegmentation(config).eval().to(device)
        height, width = (
            -(-side // SIZE_DIVISIBILITY) * SIZE_DIVISIBILITY for side in settings.size
        )
        self.images = torch.randn(settings.batch, 3, height, width, device=device)
        if settings.compiled:
            for module in self._parts():
                module.forward = torch.compile(module.forward)

    def __reduce__(self):
        """Another process builds its own."""
        return PeerRun, (self.device, self.settings)

    @torch.no_grad()
    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with ExitStack() as hooks:
            for module, part in self._parts().items():
                hook = module.register_forward_hook(watch.hook(part))
                hooks.callback(hook.remove)
            with precision(self.device, self.settings.dtype):
                self.model(pixel_values=self.images)
        # The class head, and the wrapping of outputs.
        watch.lap(TRANSFORMER_DECODER)

    def multiply_adds(self) -> dict[str, int]:
        """Not counted."""
        return {}

    def _parts(self) -> dict[nn.Module, str]:
        levels = self.model.model.pixel_level_module
        return {
            levels.encoder: BACKBONE,
            levels.decoder: ENCODER_PART,
            self.model.model.transformer_module: TRANSFORMER_DECODER,
        }


class FreedMemory:
    """Has freed memory kept or given back, as the next run wants it.

    Args:
        runs: by name.
        keeper: of :data:`KEEPERS`: the runs that keep it.
    """

    def __init__(self, runs: Mapping[str, ModelRun], keeper: str):
        self._runs, self._keeper = runs, keeper
        self._is_kept = False

    def prepare(self, name: str) -> None:
        """Before the run of this name."""
        run = self._runs[name]
        is_ours = type(run) is ModelRun
        if (self._keeper == "all" or (self._keeper == "ours" and is_ours)) == self._is_kept:
            return
        self._is_kept = not self._is_kept
        (disable_malloc_trim if self._is_kept else enable_malloc_trim)()
        # Not counted: a process comes once, not at every call, to the memory that it holds on to.
        run(Stopwatch(device_clock(run.device)))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(description=__doc__)
    benchmark.add_arguments(parser)
    parser.add_argument(
        "--keep-freed-memory",
        choices=KEEPERS,
        default="ours",
        help="the runs that do not give freed memory back to the system: ours, as in `proscale "
        "predict` and `train_net.py`; all that is compared; or none",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="against the reference implementation, too: the same weights with the reference "
        "operator and straightforward results; checks that results are the same",
    )
    parser.add_argument(
        "--peer",
        choices=("transformers",),
        help="against Hugging Face's Mask2Former with Swin-T, too, the network alone",
    )
    with errors_in_one_sentence("benchmarks/models.py"):
        run(parse(parser, arguments))


def run(options: argparse.Namespace) -> None:
    """Build, measure, print, and compare results."""
    split_overrides(options)
    device = find_device(options.device)
    if options.peer and find_spec("transformers") is None:
        raise ConfigError("--peer is transformers: the package transformers is not installed")
    quality = check_report_arguments(options)
    if not can_disable_malloc_trim():
        options.keep_freed_memory = "none"
    runs = _build_runs(options, device)
    settings = benchmark.describe_settings(options)
    settings["freed memory kept by"] = options.keep_freed_memory
    if options.peer:
        from transformers import __version__

        settings["transformers"] = __version__
    header = print_header(device, settings)

    memory = FreedMemory(runs, options.keep_freed_memory)
    times = benchmark_models(runs, repeats=options.repeats, before=memory.prepare)
    peak = fp32_peak(device)
    tables = list_tables(times, options.batch, peak)
    found: dict[str, dict[str, float]] = {}
    if options.reference:
        compared = {name: run for name, run in runs.items() if name + REFERENCE in runs}
        if not options.train:
            found = {name: compare_with_reference(run) for name, run in compared.items()}
        pairs = {name: (times[name], times[name + REFERENCE]) for name in compared}
        tables.append(reference_table(pairs, found))
    models = {name: times_as_dict(one, options.batch, peak) for name, one in times.items()}
    document = {"fp32_peak_flops": peak, "models": models, "differences": found}
    print_report(tables, {**header, **document}, options.json, options.markdown)
    if options.plot:
        benchmark.draw_times(times, quality, options)
    if options.dtype == ["fp32"]:  # mixed precision rounds differently
        _check_differences(found)


def compare_with_reference(run: ModelRun) -> dict[str, float]:
    """Distance of the results from the reference implementation's with the same weights, by kind:
    see :func:`~reference_implementation.differences`; the largest of all images."""
    reference = ReferenceRun(run.cfg, replace(run.settings, compiled=False))
    pairs = zip(run.results(), reference.results(), strict=True)
    found = [differences(fast, slow) for fast, slow in pairs]
    return {kind: max(one[kind] for one in found) for kind in found[0]}


def reference_table(
    times: Mapping[str, tuple[ModelTimes, ModelTimes]],
    differences: Mapping[str, Mapping[str, float]],
) -> str:
    """A row for every model: speed-up and memory over the reference implementation, and distance of
    its results.

    Args:
        times: of the model and of the reference implementation, by model.
        differences: by model and kind of result; none in training.
    """
    rows = []
    for name, (fast, slow) in times.items():
        speed_up = slow.times[TOTAL].median / fast.times[TOTAL].median
        rows.append(
            [
                name,
                *(f"{1e3 * one.times[TOTAL].median:.4g}" for one in (slow, fast)),
                f"{speed_up:.2f}x",
                *(mebibytes(one.peak_memory) for one in (slow, fast)),
                ", ".join(f"{kind} {far:.1e}" for kind, far in differences.get(name, {}).items()),
            ]
        )
    headers = ["model", "reference, ms", "ms", "speed-up", "reference, MiB", "MiB"]
    headers.append("results differ by")
    return markdown_table(rows, headers, text=("model", "results differ by"))


def _build_runs(options: argparse.Namespace, device: torch.device) -> dict[str, ModelRun]:
    """All that is called in turns, by its name in the tables."""
    ours, runs = benchmark.build_runs(options), {}
    for name, run in ours.items():
        runs[name] = run
        if options.reference:
            settings = replace(run.settings, compiled=False)
            runs[name + REFERENCE] = ReferenceRun(run.cfg, settings)
    if options.peer:
        for settings in dict.fromkeys(run.settings for run in ours.values()):
            suffix = f", {settings.dtype}" if len(options.dtype) > 1 else ""
            runs[PEER + suffix] = PeerRun(device, settings)
    return runs


def _check_differences(found: Mapping[str, Mapping[str, float]]) -> None:
    far = [
        f"{name}: {kind} by {difference:.1e}"
        for name, kinds in found.items()
        for kind, difference in kinds.items()
        if not difference <= TOLERANCE
    ]
    if far:
        raise ConfigError(
            f"results differ from the reference implementation's by more than {TOLERANCE:g}: "
            f"{'; '.join(far)}"
        )
    if found:
        print(f"\nResults are the reference implementation's (differences up to {TOLERANCE:g}).")


if __name__ == "__main__":
    main()
