"""``proscale benchmark``: latency by part, throughput and memory of whole models.

Times models with random weights (MODEL.WEIGHTS is not loaded) from image tensor to results, part by
part. All models are called in turns in one process; numbers are medians with quartiles, and
relative to the first model. With --budgets, one elastic PRO-SCALE with several budgets of its
encoder, each with every --merging of its backbone and at all --scales of the images; --evaluate
adds their quality on DATASETS.TEST with MODEL.WEIGHTS.
"""

import argparse
from collections.abc import Mapping
from itertools import product

from proscale.benchmark.budgets import (
    MOST,
    Budget,
    BudgetResult,
    choose_budget,
    count_budgets,
    evaluate_budgets,
    measure_budgets,
    pareto_front,
)
from proscale.benchmark.latency import TOTAL
from proscale.benchmark.machine import fp32_peak, print_header
from proscale.benchmark.models import (
    DTYPES,
    QUERIES_PER_CONFIDENT,
    TARGETS_PER_IMAGE,
    ModelRun,
    ModelSettings,
    ModelTimes,
    benchmark_models,
    list_tables,
    times_as_dict,
)
from proscale.checkpoint import check_weights, load_weights
from proscale.cli import arguments
from proscale.config import setup_cfg
from proscale.cost.model_cost import NETWORK
from proscale.cost.plots import draw, draw_costs, points
from proscale.cost.tables import markdown_table, print_report
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError, shown
from proscale.modeling import MaskFormer
from proscale.modeling.backbones.token_merging_config import PRESETS
from proscale.utils.malloc import disable_malloc_trim


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    arguments.add_models(parser)
    parser.add_argument(
        "--size",
        type=arguments.parse_size,
        default="640x960",
        metavar="HxW",
        help="of the images, pixels",
    )
    parser.add_argument("--batch", type=arguments.positive, default=1, help="images per call")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=["fp32"],
        help="one or several side by side; all but fp32 are automatic mixed precision",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="forward and backward pass of a training step instead of inference",
    )
    parser.add_argument("--compile", action="store_true", help="by torch.compile, part by part")
    arguments.add_report_arguments(
        parser, plot="latency by part, and against GFLOPs", against="latency"
    )
    arguments.add_benchmark_arguments(parser, repeats=5)
    budgets = parser.add_argument_group("budgets of an elastic PRO-SCALE")
    budgets.add_argument(
        "--budgets", type=_budgets, metavar="BUDGETS", help="all, or such as 1,1,1:2,2,2"
    )
    budgets.add_argument(
        "--merging",
        nargs="+",
        choices=tuple(PRESETS),
        default=[None],
        help="of the backbone MixVisionTransformer's tokens, with each of them; as configured when "
        "left out",
    )
    budgets.add_argument(
        "--scales",
        nargs="+",
        type=_scale,
        default=[1.0],
        metavar="SCALE",
        help="of the images' sides, with each of them, such as 1 0.75",
    )
    budgets.add_argument("--evaluate", action="store_true", help="evaluate each of them, too")
    budgets.add_argument(
        "--latency",
        type=arguments.parse_milliseconds,
        metavar="TIME",
        help="name the best one that takes at most this, such as 300ms",
    )
    budgets.add_argument(
        "--budget",
        type=arguments.parse_percentage,
        metavar="PERCENT",
        help="name the best one whose encoder costs at most this of Mask2Former's, such as 55%%",
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    arguments.split_overrides(options)
    device = arguments.find_device(options.device)
    quality = arguments.check_report_arguments(options)
    names = ("merging", "scales", "evaluate", "latency", "budget")
    given = [name for name in names if getattr(options, name) not in (None, False, [None], [1.0])]
    if options.budgets is None and given:
        raise ConfigError(f"--{given[0]} needs --budgets: all, or some")
    is_one = len(options.config_file) == len(options.dtype) == 1
    if options.budgets is not None and (not is_one or options.compile or options.train):
        raise ConfigError(
            "--budgets is for inference of one --config-file in one --dtype, without --compile"
        )
    # As ``proscale predict`` and ``train_net.py`` do; this is about the CPU's memory alone.
    kept = disable_malloc_trim()
    runs = build_runs(options)
    settings = {**describe_settings(options), "freed memory": "kept" if kept else "given back"}
    header = print_header(device, settings)
    if options.budgets is not None:
        _compare_budgets(runs, header, options)
        return
    times = benchmark_models(runs, repeats=options.repeats)
    # Measured in the same run, because other load of the machine slows both.
    peak = fp32_peak(device)
    tables = list_tables(times, options.batch, peak)
    models = {name: times_as_dict(found, options.batch, peak) for name, found in times.items()}
    document = {**header, "fp32_peak_flops": peak, "models": models}
    print_report(tables, document, options.json, options.markdown)
    if options.plot:
        draw_times(times, quality, options)


def build_runs(options: argparse.Namespace) -> dict[str, ModelRun]:
    """The models in every number format, by their names in the tables."""
    runs = {}
    for dtype in options.dtype:
        # Models of one number format need no mark of it.
        suffix = f", {dtype}" if len(options.dtype) > 1 else ""
        settings = ModelSettings(
            options.size, options.batch, dtype, train=options.train, compiled=options.compile
        )
        for name, file in arguments.short_names(options.config_file).items():
            with arguments.naming(file):
                cfg = setup_cfg(file, [*options.opts, "MODEL.DEVICE", options.device])
                runs[name + suffix] = ModelRun(cfg, settings)
    return runs


def describe_settings(options: argparse.Namespace) -> dict[str, str | int]:
    """The settings of the runs, for the head of the report."""
    return {
        "mode": f"training step, {TARGETS_PER_IMAGE} targets an image, without optimiser"
        if options.train
        else f"inference, one query in {QUERIES_PER_CONFIDENT} sure of a class",
        "weights": "MODEL.WEIGHTS" if options.evaluate else "random, MODEL.WEIGHTS is not loaded",
        "size": "{}x{}".format(*options.size),
        "batch": options.batch,
        "dtype": " ".join(options.dtype),
        "compiled": "yes" if options.compile else "no",
        "repeats": options.repeats,
        "overrides": " ".join(options.opts) or "none",
    }


def _compare_budgets(
    runs: Mapping[str, ModelRun], header: Mapping, options: argparse.Namespace
) -> None:
    """Measure budgets of one model; print, write and draw what they cost and give."""
    ((name, run),) = runs.items()
    (file,) = options.config_file
    with arguments.naming(file):
        budgets = _list_budgets(run, options)
    metric: str = ""
    quality: dict[Budget, float] = {}
    if options.evaluate:
        check_weights(run.cfg, resume=False, required=True)
        load_weights(run.model, run.cfg)
        dataset = run.cfg.DATASETS.TEST[0]
        with arguments.naming(file):
            metric, quality = evaluate_budgets(
                run.cfg, run.model, budgets, Trainer.build_test_loader, dataset
            )
    times = measure_budgets(run, budgets, repeats=options.repeats)
    costs = count_budgets(run.cfg, run.model, options.size, budgets)
    results = {
        budget: BudgetResult(*costs[budget], times[budget], quality.get(budget))
        for budget in budgets
    }
    front = pareto_front(results)
    last = times[budgets[-1]].median
    rows = []
    for budget, result in results.items():
        row = [str(budget), f"{result.encoder / 1e9:.2f}", f"{100 * result.share:.1f} %"]
        row += [f"{result.network / 1e9:.2f}", *result.time.milliseconds]
        row.append(f"{result.time.median / last:.2f}")
        row += [f"{result.metric:.2f}"] if result.metric is not None else []
        rows.append([*row, "yes" if budget in front else ""])
    headers = ["budget", "encoder, GFLOPs", "of Mask2Former's", "network, GFLOPs", "ms"]
    headers += ["quartiles", "vs last", *([metric] if metric else []), "Pareto front"]
    tables = [f"Budgets of {name}", markdown_table(rows, headers, text=("budget",))]
    document = {
        **header,
        "metric": metric or None,
        "budgets": {
            str(budget): {
                "layers": budget.layers,
                "merging": budget.merging,
                "scale": budget.scale,
                "encoder_multiply_adds": result.encoder,
                "network_multiply_adds": result.network,
                "seconds": result.time.as_dict(),
                "metric": result.metric,
                "on_pareto_front": budget in front,
            }
            for budget, result in results.items()
        },
    }
    print_report(tables, document, options.json, options.markdown)
    if options.plot:
        _draw_budgets(results, metric, options)
    if options.latency or options.budget:
        best = choose_budget(results, latency=options.latency, share=options.budget)
        print(f"\nThe best one affordable: {' '.join(_overrides(best, run))}")


def _list_budgets(run: ModelRun, options: argparse.Namespace) -> list[Budget]:
    """All combinations of the axes, checked before the work."""
    if not isinstance(run.model, MaskFormer):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {run.cfg.MODEL.META_ARCHITECTURE}: expected MaskFormer "
            "with --budgets"
        )
    encoder = run.model.progressive_encoder
    for layers in options.budgets:
        encoder.check_budget(layers)
    # Refuses merging where the backbone does not merge.
    run.model.set_budget(token_merging=options.merging[0])
    number = len(options.budgets) or encoder.num_budgets
    number *= len(options.merging) * len(options.scales)
    if number > MOST:
        raise ConfigError(f"--budgets makes {number} to compare: expected at most {MOST}")
    layers_of_all = options.budgets or encoder.budgets
    # Layers change fastest: neighbours in the table have the same images and merging.
    return [
        Budget(layers, merging, scale)
        for scale, merging, layers in product(options.scales, options.merging, layers_of_all)
    ]


def _overrides(budget: Budget, run: ModelRun) -> list[str]:
    """KEY VALUE pairs with which commands take a budget."""
    cfg = budget.configure(run.cfg)
    pairs = [f"MODEL.PROSCALE.BUDGET [{arguments.spell_layers(budget.layers)}]"]
    if budget.merging is not None:
        pairs.append(f"MODEL.MIT.TOKEN_MERGING {budget.merging}")
    if budget.scale != 1:
        pairs += [f"INPUT.{key} {cfg.INPUT[key]}" for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST")]
    return pairs


def _draw_budgets(
    results: Mapping[Budget, BudgetResult], metric: str, options: argparse.Namespace
) -> None:
    """Latency against GFLOPs, and the metric, if there is one, against latency."""
    time = {str(budget): 1e3 * result.time.median for budget, result in results.items()}
    cost = {str(budget): result.network / 1e9 for budget, result in results.items()}
    axes = ("GFLOPs (multiply-adds) of the network", "latency, ms")
    panels = [points({name: (cost[name], time[name]) for name in time}, axes)]
    if metric:
        score = {str(budget): result.metric or 0.0 for budget, result in results.items()}
        places = {name: (time[name], score[name]) for name in time}
        panels.insert(0, points(places, (axes[1], metric)))
    draw(panels, options.plot)


def _budgets(text: str) -> list[tuple[int, ...]]:
    """Layers of budgets, such as 1,1,1:2,2,2; of all, an empty list."""
    return [] if text == "all" else arguments.parse_budgets(text)


def _scale(text: str) -> float:
    """A fraction of an image's sides."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected numbers above 0, up to 1")
    return value


def draw_times(
    times: Mapping[str, ModelTimes],
    quality: tuple[str, Mapping[str, float]] | None,
    options: argparse.Namespace,
) -> None:
    """Bars of latency by part; latency against GFLOPs; and quality against latency."""
    total = {name: 1e3 * found.times[TOTAL].median for name, found in times.items()}
    # Pieces of a bar add up to the total.
    parts = {
        name: {
            part: 1e3 * timing.median
            for part, timing in found.times.items()
            if part not in (NETWORK, TOTAL)
        }
        for name, found in times.items()
    }
    # A training step's multiply-adds are not counted.
    counted = {
        name: (options.batch * found.multiply_adds[NETWORK] / 1e9, total[name])
        for name, found in times.items()
        if found.multiply_adds
    }
    label = "latency, ms"
    axes = ("GFLOPs (multiply-adds) of the network", label)
    panels = [points(counted, axes)] if counted else []
    # Quality against latency is the trade-off that a user has to choose from.
    draw_costs(options.plot, label, parts, total, panels=panels, quality=quality)
