"""Training of the gate that chooses a budget for each image (ECO-M2F, §3.3).

An elastic model predicts images with every exit; the gate learns, from the mean token that the
encoder begins with, which of them is worth its layers. The model itself is left as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor
from torch.nn import functional as F

from proscale.data.formats.image_file import read_panoptic_png
from proscale.errors import ConfigError, DataError
from proscale.evaluation.panoptic_quality import PanopticQuality
from proscale.modeling import MaskFormer
from proscale.modeling.pixel_decoders.budget_gate import BudgetGate, mean_token
from proscale.modeling.pixel_decoders.proscale import PROSCALE

STEPS, LEARNING_RATE, WEIGHT_DECAY = 500, 1e-2, 1e-3
#: Of the soft targets: exits whose utilities differ by this much of PQ, in [0, 1], differ by e.
TEMPERATURE = 0.02
#: Every so many images one is held out.
HELD_OUT = 5


@dataclass(frozen=True)
class ExitQuality:
    """Images as the gate sees them, and how well every exit predicts them."""

    tokens: Tensor  #: (N, C)
    quality: Tensor  #: (N, exits): PQ of each image, in [0, 1]


@torch.no_grad()
def collect_quality(
    model: MaskFormer,
    exits: Sequence[tuple[int, ...]],
    loader: Iterable[list[dict]],
    dataset_name: str,
    *,
    limit: int,
) -> ExitQuality:
    """Predict images with every exit; the backbone sees each of them once.

    Args:
        model: an elastic PRO-SCALE, with its weights, in evaluation mode.
        exits: budgets of its encoder.
        loader: batches of one image of ``dataset_name``, as a test loader gives them.
        limit: images at most.

    Raises:
        ConfigError: the data set has no panoptic annotations.
        DataError: it has fewer than :data:`HELD_OUT` images.
    """
    categories = _categories(dataset_name)
    decoder = model.sem_seg_head.get_submodule("pixel_decoder")
    assert isinstance(decoder, PROSCALE)  # whose encoder the exits are budgets of
    tokens, qualities = [], []
    for (sample,) in loader:
        features, results = model.infer_budgets(sample, exits)
        tokens.append(mean_token(decoder.coarsest(features))[0].cpu())
        scores = [
            _quality_of_image(result["panoptic_seg"], sample, categories) for result in results
        ]
        qualities.append(scores)
        if len(tokens) == limit:
            break
    if len(tokens) < HELD_OUT:
        raise DataError(
            f"data set {dataset_name} has {len(tokens)} images: expected at least {HELD_OUT}, of "
            "which one is held out"
        )
    # An image on which nothing is counted prefers no exit.
    return ExitQuality(torch.stack(tokens), torch.tensor(qualities).nan_to_num(0.0))


@dataclass(frozen=True)
class GateReport:
    """The images that were held out, PQ in [0, 1]."""

    quality: float  #: mean PQ with the gate's choices
    layers: float  #: mean layers of the encoder with them
    chosen: Mapping[tuple[int, ...], float]  #: fraction of the images, by exit
    of_exits: Mapping[tuple[int, ...], float]  #: mean PQ with each exit for all


def train_gate(
    data: ExitQuality, exits: Sequence[tuple[int, ...]], *, beta: float, seed: int = 0
) -> tuple[BudgetGate, GateReport]:
    """Fit a gate by cross-entropy with soft targets over the exits.

    Args:
        data: see :func:`collect_quality`.
        exits: its budgets.
        beta: PQ, in [0, 1], that a layer of the encoder has to be worth.
        seed: of the layer's first weights.
    """
    torch.manual_seed(seed)
    gate = BudgetGate(data.tokens.shape[1], exits)
    held_out = torch.arange(len(data.tokens)) % HELD_OUT == HELD_OUT - 1
    # Utility of an exit (§3.3): its quality, less β for each layer.
    layers = torch.tensor([float(sum(budget)) for budget in exits])
    utility = data.quality - beta * layers
    targets = (utility[~held_out] / TEMPERATURE).softmax(dim=1)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(gate.score(data.tokens[~held_out]), targets).backward()
        optimizer.step()
    with torch.no_grad():
        choice = gate.score(data.tokens[held_out]).argmax(dim=1)
    quality = data.quality[held_out]
    chosen = torch.bincount(choice, minlength=len(exits)) / len(choice)
    return gate, GateReport(
        quality=float(quality.gather(1, choice[:, None]).mean()),
        layers=float(layers[choice].mean()),
        chosen=dict(zip(exits, chosen.tolist(), strict=True)),
        of_exits=dict(zip(exits, quality.mean(dim=0).tolist(), strict=True)),
    )


def _categories(dataset_name: str) -> list[dict]:
    """By contiguous id, which predictions have."""
    metadata = MetadataCatalog.get(dataset_name)
    things = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    stuff = getattr(metadata, "stuff_dataset_id_to_contiguous_id", None)
    if things is None or stuff is None or not hasattr(metadata, "panoptic_json"):
        raise ConfigError(
            f"DATASETS.TRAIN is {dataset_name}: expected a panoptic data set, by whose PQ exits "
            "are compared"
        )
    kinds = dict.fromkeys(stuff.values(), False) | dict.fromkeys(things.values(), True)
    return [{"id": id_, "name": str(id_), "isthing": is_thing} for id_, is_thing in kinds.items()]


def _quality_of_image(
    predicted: tuple[Tensor, list[dict]], sample: dict, categories: list[dict]
) -> float:
    """PQ in [0, 1] of one image, nan where nothing is counted."""
    ids, segments = predicted
    quality = PanopticQuality(categories)
    quality.update(
        ids.cpu().numpy(),
        segments,
        read_panoptic_png(sample["pan_seg_file_name"]),
        sample["segments_info"],
        image=sample["file_name"],
    )
    return quality.results().all.pq / 100
