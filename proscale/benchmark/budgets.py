"""Budgets of an elastic PRO-SCALE side by side: multiply-adds, time and quality of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod

import torch
from detectron2.config import CfgNode

from proscale.benchmark.latency import TOTAL, Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.models import WARMUP, ModelRun
from proscale.cost.encoder_cost import EncoderDesign, mask2former_cost, proscale_cost
from proscale.cost.flops import padded_size
from proscale.cost.model_cost import NETWORK
from proscale.errors import ConfigError, DataError
from proscale.evaluation import build_evaluator
from proscale.modeling import MaskFormer
from proscale.modeling.pixel_decoders.proscale import ProgressiveEncoder

Budget = tuple[int, ...]
#: Metrics that budgets are compared by, the first that the evaluation has.
METRICS = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))

MOST = 216  #: budgets of one comparison


@dataclass(frozen=True)
class BudgetResult:
    """Cost and quality of a budget."""

    encoder: int  #: multiply-adds of the pixel decoder, of one image
    share: float  #: them as a fraction of those of Mask2Former's
    network: int  #: multiply-adds of the network, of one image
    time: Timing  #: of whole calls, from image to results
    metric: float | None  #: see :func:`evaluate_budgets`; None without evaluation


def all_budgets(encoder: ProgressiveEncoder) -> list[Budget]:
    """The smallest first and the largest, all layers, last.

    Raises:
        ConfigError: they are more than :data:`MOST`.
    """
    counts = [
        range(least, most + 1)
        for least, most in zip(encoder.smallest_budget, encoder.num_layers, strict=True)
    ]
    if (number := prod(map(len, counts))) > MOST:
        raise ConfigError(
            f"--budgets is all, which are {number}: expected at most {MOST}, name some"
        )
    return list(product(*counts))


def measure_budgets(
    run: ModelRun, budgets: Sequence[Budget], *, repeats: int
) -> dict[Budget, Timing]:
    """Times of ``run`` with each budget, in turns."""

    def call(budget: Budget, watch: Stopwatch) -> None:
        run.model.set_budget(budget)
        run(watch)

    calls = {budget: partial(call, budget) for budget in budgets}
    clock = device_clock(run.device)
    times = measure_parts(calls, repeats=repeats, warmup=WARMUP, clock=clock)
    return {budget: parts[TOTAL] for budget, parts in times.items()}


def count_budgets(run: ModelRun, budgets: Sequence[Budget]) -> dict[Budget, tuple[int, float, int]]:
    """Multiply-adds of the encoder, these over Mask2Former's, and multiply-adds of the network."""
    size = padded_size(run.model, run.settings.size)
    design = EncoderDesign.from_config(run.cfg, size)
    baseline = mask2former_cost(design)
    # One trace of the network; what a budget leaves out is known in closed form.
    whole = proscale_cost(design, run.model.progressive_encoder.num_layers)
    network = run.multiply_adds()[NETWORK]
    costs = {budget: proscale_cost(design, budget) for budget in budgets}
    return {
        budget: (cost, cost / baseline, network - whole + cost) for budget, cost in costs.items()
    }


@torch.no_grad()
def evaluate_budgets(
    cfg: CfgNode,
    model: MaskFormer,
    budgets: Sequence[Budget],
    loader: Iterable[list[dict]],
    dataset_name: str,
) -> tuple[str, dict[Budget, float]]:
    """Quality of every budget on a data set; the backbone sees every image once.

    Args:
        cfg: which results are evaluated.
        model: in evaluation mode, with its weights.
        budgets: of its encoder.
        loader: batches of one image of ``dataset_name``, as a test loader gives them.

    Returns:
        the name of the metric, of :data:`METRICS`, and its value (percent) by budget.

    Raises:
        DataError: the data set is empty.
        ConfigError: see :func:`~proscale.evaluation.build_evaluator`.
    """
    evaluators = {budget: build_evaluator(cfg, dataset_name) for budget in budgets}
    for evaluator in evaluators.values():
        evaluator.reset()
    count = 0
    for count, batch in enumerate(loader, 1):  # noqa: B007
        _, results = model.infer_budgets(batch[0], budgets)
        for budget, result in zip(budgets, results, strict=True):
            evaluators[budget].process(batch, [result])
    if not count:
        raise DataError(f"data set {dataset_name} has no images")
    found = {budget: dict(evaluator.evaluate() or {}) for budget, evaluator in evaluators.items()}
    task, name = next(pair for pair in METRICS if pair[0] in found[budgets[0]])
    return name, {budget: float(scores[task][name]) for budget, scores in found.items()}


def pareto_front(results: Mapping[Budget, BudgetResult]) -> list[Budget]:
    """The budgets that no other one matches in quality at less time; see :func:`_quality`."""
    front: list[Budget] = []
    for budget in sorted(results, key=lambda budget: results[budget].time.median):
        if not front or _quality(results[budget]) > _quality(results[front[-1]]):
            front.append(budget)
    return front


def choose_budget(
    results: Mapping[Budget, BudgetResult], *, latency: float | None, share: float | None
) -> Budget:
    """The best budget of those that this machine affords.

    Args:
        results: of every budget.
        latency: seconds that a call may take, by its median; None allows any.
        share: multiply-adds of the encoder that are allowed, as a fraction of Mask2Former's; None
            allows any.

    Raises:
        ConfigError: none is affordable; tells the cheapest.
    """
    affordable = {
        budget: result
        for budget, result in results.items()
        if (latency is None or result.time.median <= latency)
        and (share is None or result.share <= share)
    }
    if not affordable:
        cheapest = min(results.values(), key=lambda result: result.time.median)
        raise ConfigError(
            f"no budget is affordable: expected --latency from {1e3 * cheapest.time.median:.0f}ms "
            f"or --budget from {100 * min(r.share for r in results.values()):.1f}%"
        )
    return max(affordable, key=lambda budget: _quality(affordable[budget]))


def _quality(result: BudgetResult) -> float:
    # Without an evaluation more layers count as better.
    return result.encoder if result.metric is None else result.metric
