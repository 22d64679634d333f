"""The budget of an elastic PRO-SCALE that a machine affords: the most layers within a limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

from proscale.benchmark.latency import Timing, device_clock, measure
from proscale.cost.encoder_cost import EncoderDesign, mask2former_cost, proscale_cost
from proscale.cost.flops import padded_size
from proscale.errors import ConfigError
from proscale.modeling import MaskFormer
from proscale.utils.types import Size

REPEATS, WARMUP = 3, 1  # calls with a budget
MOST = 10_000  #: budgets that are looked through

Layers = tuple[int, ...]


@dataclass(frozen=True)
class ChosenBudget:
    """The budget that a model has now."""

    layers: Layers  #: of each stage of the encoder
    share: float  #: multiply-adds of the pixel decoder, as a fraction of Mask2Former's
    time: Timing | None  #: of an image; None where nothing was measured

    def __str__(self) -> str:
        key = f"MODEL.PROSCALE.BUDGET [{','.join(map(str, self.layers))}]"
        took = f"{1e3 * self.time.median:.0f} ms an image, " if self.time else ""
        return f"{key}: {took}{self.share:.1%} of the multiply-adds of Mask2Former's encoder"


def choose_budget(
    cfg: CfgNode,
    model: nn.Module,
    call: Callable[[], object],
    size: Size,
    *,
    latency: float | None,
    share: float | None,
) -> ChosenBudget:
    """Set ``model`` to the budget with the most multiply-adds of all that are within the limits.

    More layers take more time, so that a search by halves measures few of many budgets. The one
    that is chosen was measured.

    Args:
        cfg: of the model.
        model: with PRO-SCALE's encoder.
        call: predicts an image with it.
        size: (height, width) of this image as the model sees it, pixels.
        latency: seconds that a call may take, by the median of :data:`REPEATS`; None allows any.
        share: multiply-adds of the pixel decoder that are allowed, as a fraction of Mask2Former's;
            None allows any.

    Raises:
        ConfigError: the model has no budgets, or none is within the limits; tells the cheapest.
    """
    decoder = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    if not isinstance(model, MaskFormer) or decoder != "PROSCALE":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE and PIXEL_DECODER_NAME are {cfg.MODEL.META_ARCHITECTURE} and "
            f"{decoder}: expected MaskFormer and PROSCALE, whose layers a budget chooses"
        )
    # Cost is known in closed form, so that nothing is measured for it.
    shares = _shares(cfg, model, size)
    candidates = [budget for budget in shares if share is None or shares[budget] <= share]
    if not candidates:
        raise ConfigError(f"--budget is {share:.1%}: expected at least {min(shares.values()):.1%}")
    candidates.sort(key=lambda budget: shares[budget])
    time = None
    layers = candidates[-1]
    if latency is not None:
        layers, time = _most_within(latency, candidates, model, call)
    model.set_budget(layers)
    return ChosenBudget(layers, shares[layers], time)


def _shares(cfg: CfgNode, model: MaskFormer, size: Size) -> dict[Layers, float]:
    """Multiply-adds of the pixel decoder with every budget over Mask2Former's."""
    encoder = model.progressive_encoder
    if encoder.num_budgets > MOST:
        raise ConfigError(
            f"MODEL.PROSCALE.PROSCALE_NUM_LAYERS is {encoder.num_layers}: expected at most {MOST} "
            "budgets to choose from"
        )
    design = EncoderDesign.from_config(cfg, padded_size(model, size))
    baseline = mask2former_cost(design)
    return {budget: proscale_cost(design, budget) / baseline for budget in encoder.budgets}


def _most_within(
    latency: float, candidates: Sequence[Layers], model: MaskFormer, call: Callable[[], object]
) -> tuple[Layers, Timing]:
    """The last of ``candidates``, in the order of their cost, that takes at most ``latency``."""
    clock = device_clock(model.device)
    found: tuple[Layers, Timing] | None = None
    # By halves: those before `first` are fast enough, those from `end` on are too slow.
    first, end = 0, len(candidates)
    while first < end:
        middle = (first + end) // 2
        model.set_budget(candidates[middle])
        time = measure({0: call}, repeats=REPEATS, warmup=WARMUP, clock=clock)[0]
        if time.median <= latency:
            first, found = middle + 1, (candidates[middle], time)
        else:
            end = middle
    if found is None:
        # The cheapest was measured last.
        raise ConfigError(
            f"--latency is {1e3 * latency:.0f}ms: expected at least {1e3 * time.median:.0f}ms, "
            "which the smallest budget takes on this machine"
        )
    return found
