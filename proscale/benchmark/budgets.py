"""Budgets of an elastic PRO-SCALE side by side: multiply-adds, time and quality of each.

Besides the encoder's layers a budget has two axes that need no training of their own: how the
backbone merges tokens (SegFormer++), and the size of the images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from detectron2.config import CfgNode

from proscale.benchmark.latency import TOTAL, Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.models import WARMUP, ModelRun, multiply_adds_by_part
from proscale.cost.encoder_cost import EncoderDesign, mask2former_cost, proscale_cost
from proscale.cost.flops import padded_size
from proscale.cost.model_cost import NETWORK
from proscale.errors import ConfigError, DataError
from proscale.evaluation import build_evaluator
from proscale.modeling import MaskFormer
from proscale.utils.types import Size

#: Metrics that budgets are compared by, the first that the evaluation has.
METRICS = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))

MOST = 216  #: budgets of one comparison


@dataclass(frozen=True)
class Budget:
    """How much a model computes for an image."""

    layers: tuple[int, ...]  #: of each stage of PRO-SCALE's encoder
    #: ``MODEL.MIT.TOKEN_MERGING``, one of the presets; None leaves it as it is.
    merging: str | None = None
    scale: float = 1.0  #: of the images' sides

    def __str__(self) -> str:
        scale = f"×{self.scale:g}" if self.scale != 1 else ""
        return " ".join(filter(None, (",".join(map(str, self.layers)), self.merging, scale)))

    def size(self, size: Size) -> Size:
        """``size`` (height, width), pixels, scaled; at least one pixel to the side."""
        height, width = (max(1, round(self.scale * side)) for side in size)
        return height, width

    def configure(self, cfg: CfgNode) -> CfgNode:
        """A copy of ``cfg`` whose model computes and evaluates by this budget.

        Raises:
            ConfigError: images are scaled, but ``cfg`` leaves them as they are.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PROSCALE.BUDGET = list(self.layers)
        if self.merging is not None:
            cfg.MODEL.MIT.TOKEN_MERGING = self.merging
        if self.scale != 1:
            if not cfg.INPUT.MIN_SIZE_TEST:
                raise ConfigError("INPUT.MIN_SIZE_TEST is 0: expected pixels, which --scales scale")
            limits = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = self.size(limits)
        return cfg


@dataclass(frozen=True)
class BudgetResult:
    """Cost and quality of a budget."""

    encoder: int  #: multiply-adds of the pixel decoder, of one image
    share: float  #: them as a fraction of those of Mask2Former's for an image that is not scaled
    network: int  #: multiply-adds of the network, of one image
    time: Timing  #: of whole calls, from image to results
    metric: float | None  #: see :func:`evaluate_budgets`; None without evaluation


def measure_budgets(
    run: ModelRun, budgets: Sequence[Budget], *, repeats: int
) -> dict[Budget, Timing]:
    """Times of ``run``, whose settings have the size before it is scaled, with each budget, in
    turns."""
    size = run.settings.size

    def prepare(budget: Budget) -> None:
        run.model.set_budget(budget.layers, token_merging=budget.merging)
        run.resize(budget.size(size))

    calls: dict[Budget, Callable[[Stopwatch], None]] = dict.fromkeys(budgets, run)
    clock = device_clock(run.device)
    times = measure_parts(calls, repeats=repeats, warmup=WARMUP, clock=clock, before=prepare)
    return {budget: parts[TOTAL] for budget, parts in times.items()}


def count_budgets(
    cfg: CfgNode, model: MaskFormer, size: Size, budgets: Sequence[Budget]
) -> dict[Budget, tuple[int, float, int]]:
    """Multiply-adds of the encoder, these over Mask2Former's, and multiply-adds of the network, for
    an image of ``size`` (height, width) pixels before it is scaled."""
    design_at = cache(lambda size: EncoderDesign.from_config(cfg, padded_size(model, size)))
    largest = tuple(model.progressive_encoder.num_layers)
    baseline = mask2former_cost(design_at(size))

    @cache
    def without_encoder(merging: str | None, scale: float) -> int:
        # One trace of the network; what layers cost is known in closed form.
        budget = Budget(largest, merging, scale)
        scaled = budget.size(size)
        network = multiply_adds_by_part(budget.configure(cfg), scaled)[NETWORK]
        return network - proscale_cost(design_at(scaled), largest)

    costs = {}
    for budget in budgets:
        cost = proscale_cost(design_at(budget.size(size)), budget.layers)
        rest = without_encoder(budget.merging, budget.scale)
        costs[budget] = (cost, cost / baseline, rest + cost)
    return costs


@torch.no_grad()
def evaluate_budgets(
    cfg: CfgNode,
    model: MaskFormer,
    budgets: Sequence[Budget],
    build_loader: Callable[[CfgNode, str], Iterable[list[dict]]],
    dataset_name: str,
) -> tuple[str, dict[Budget, float]]:
    """Quality of every budget on a data set; the backbone sees every image once for each size and
    merging.

    Args:
        cfg: which results are evaluated.
        model: in evaluation mode, with its weights; has the last budget's merging afterwards.
        budgets: of it.
        build_loader: makes a test loader of a configuration for ``dataset_name``, with batches of
            one image.

    Returns:
        the name of the metric, of :data:`METRICS`, and its value (percent) by budget.

    Raises:
        DataError: the data set is empty.
        ConfigError: see :func:`~proscale.evaluation.build_evaluator` and :meth:`Budget.configure`.
    """
    evaluators = {budget: build_evaluator(cfg, dataset_name) for budget in budgets}
    # Budgets that differ in their layers alone share the backbone's features.
    groups: dict[tuple[str | None, float], list[Budget]] = {}
    for budget in budgets:
        groups.setdefault((budget.merging, budget.scale), []).append(budget)
    loaders = {
        key: build_loader(group[0].configure(cfg), dataset_name) for key, group in groups.items()
    }
    for key, group in groups.items():
        for budget in group:
            evaluators[budget].reset()
        model.set_budget(token_merging=group[0].merging)
        count = 0
        for count, batch in enumerate(loaders[key], 1):  # noqa: B007
            _, results = model.infer_budgets(batch[0], [budget.layers for budget in group])
            for budget, result in zip(group, results, strict=True):
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
    # Without an evaluation more computing counts as better.
    return result.network if result.metric is None else result.metric
