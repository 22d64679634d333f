"""What models are benchmarked with: random images, random targets, and confident predictions."""

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor

# One query in so many is sure of a class; the others are sure that there is nothing. With 100
# queries that makes 20 candidates for an image of COCO, which has 11 segments on average.
QUERIES_PER_CONFIDENT = 5
CONFIDENT_LOGIT = 10.0
TARGETS_PER_IMAGE = 10


def random_images(
    size: tuple[int, int], count: int, generator: torch.Generator, *, num_classes: int
) -> list[dict]:
    """Samples as a mapper makes them.

    Args:
        size: (height, width) of the images, pixels.
        count: images.
        generator: of the random numbers.
        num_classes: of the targets, ``instances`` and ``sem_seg``; 0 makes none.
    """
    samples = []
    for _ in range(count):
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "height": size[0], "width": size[1]})
    if num_classes:
        for sample in samples:
            sample["instances"] = _rectangles(size, num_classes, generator)
            sample["sem_seg"] = torch.randint(num_classes, size, generator=generator)
    return samples


def confident_logits(num_queries: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Class logits ``(Q, K + 1)`` as a trained model gives them: see
    :data:`QUERIES_PER_CONFIDENT`."""
    logits = torch.randn(num_queries, num_classes + 1, generator=generator)
    winners = torch.full((num_queries,), num_classes)
    confident = winners[::QUERIES_PER_CONFIDENT]
    confident.copy_(torch.randint(num_classes, confident.shape, generator=generator))
    logits[torch.arange(num_queries), winners] += CONFIDENT_LOGIT
    return logits


def _rectangles(size: tuple[int, int], num_classes: int, generator: torch.Generator) -> Instances:
    """:data:`TARGETS_PER_IMAGE` of random place, size and class."""
    masks = torch.zeros(TARGETS_PER_IMAGE, *size, dtype=torch.bool)
    corners = torch.rand(TARGETS_PER_IMAGE, 2, 2, generator=generator).sort(dim=-1).values
    for mask, (rows, columns) in zip(masks, corners.tolist(), strict=True):
        top, bottom = (int(place * size[0]) for place in rows)
        left, right = (int(place * size[1]) for place in columns)
        mask[top : bottom + 1, left : right + 1] = True
    instances = Instances(size)
    instances.gt_classes = torch.randint(num_classes, (TARGETS_PER_IMAGE,), generator=generator)
    instances.gt_masks = BitMasks(masks)
    return instances
