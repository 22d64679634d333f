"""The meta-architecture: images to features, predictions, and losses or results."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_sem_seg_head
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.errors import ConfigError
from proscale.modeling.backbones.mit import MixVisionTransformer
from proscale.modeling.backbones.token_merging_config import TokenMerging
from proscale.modeling.elastic import budget_of, elastic_losses, gated_outputs
from proscale.modeling.image_model import ImageModel, image_model_arguments
from proscale.modeling.losses import HungarianMatcher, SetCriterion
from proscale.modeling.pixel_decoders.proscale import ProgressiveEncoder
from proscale.modeling.postprocessing import (
    Collector,
    InstanceSet,
    PanopticMap,
    SemanticLabels,
    SemanticScores,
    collect_results,
)
from proscale.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from proscale.ops.mask_resize import Sizes
from proscale.utils.types import Size


@META_ARCH_REGISTRY.register()
class MaskFormer(ImageModel):
    """Mask classification for semantic, instance and panoptic segmentation.

    Args:
        backbone, pixel_mean, pixel_std, size_divisibility, inference_dtype, channels_last: see
            :class:`~proscale.modeling.image_model.ImageModel`.
        sem_seg_head: see :class:`~proscale.modeling.head.MaskFormerHead`.
        criterion: losses of the head's outputs; its ``weight_dict`` weights them.
        deep_supervision: penalise the auxiliary outputs as well.
        things: contiguous ids of the classes that are counted.
        semantic_on, instance_on, panoptic_on: which results inference returns.
        resize_before_semantic: resize masks to the requested size before the semantic scores are
            computed rather than after.
        semantic_labels_only: return the best class of every pixel instead of all classes' scores.
        object_mask_threshold, overlap_threshold, panoptic_scores: see
            :class:`~proscale.modeling.postprocessing.PanopticMap`.
        max_instances: instances per image.
        strip_memory: MiB of masks looked at at a time, see
            :func:`~proscale.ops.mask_resize.mask_probabilities`.
        elastic: train all budgets of PRO-SCALE's encoder, see :mod:`proscale.modeling.elastic`.
        gated: let the gate of PRO-SCALE's pixel decoder choose a budget for each image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        deep_supervision: bool,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        things: Collection[int],
        semantic_on: bool,
        instance_on: bool,
        panoptic_on: bool,
        resize_before_semantic: bool,
        semantic_labels_only: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        panoptic_scores: bool,
        max_instances: int,
        strip_memory: int,
        inference_dtype: str,
        channels_last: bool,
        elastic: bool = False,
        gated: bool = False,
    ):
        super().__init__(
            backbone=backbone,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
            inference_dtype=inference_dtype,
            channels_last=channels_last,
        )
        if strip_memory < 1:
            raise ValueError(f"strip_memory is {strip_memory}: expected MiB from 1")
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.deep_supervision = deep_supervision
        self.things = frozenset(things)
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        # Panoptic and instance results are made from masks of the requested size.
        self.resize_first = resize_before_semantic or panoptic_on or instance_on
        self.semantic_labels_only = semantic_labels_only
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.panoptic_scores = panoptic_scores
        self.max_instances = max_instances
        # Masks of full size are looked at a strip at a time.
        self.strip_bytes = strip_memory * 2**20
        self.elastic, self.gated = elastic, gated
        self.use_layout()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        arguments, node = image_model_arguments(cfg), cfg.MODEL.MASK_FORMER
        if cfg.MODEL.PROSCALE.ELASTIC and node.SELECTED_QUERIES:
            # Distillation compares the budgets' predictions query by query.
            raise ConfigError(
                "MODEL.PROSCALE.ELASTIC is True: expected False with "
                "MODEL.MASK_FORMER.SELECTED_QUERIES, which differ from budget to budget"
            )
        return {
            **arguments,
            "sem_seg_head": build_sem_seg_head(cfg, arguments["backbone"].output_shape()),
            "criterion": build_criterion(cfg),
            "deep_supervision": node.DEEP_SUPERVISION,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "things": thing_classes(cfg),
            "semantic_on": node.TEST.SEMANTIC_ON,
            "instance_on": node.TEST.INSTANCE_ON,
            "panoptic_on": node.TEST.PANOPTIC_ON,
            "resize_before_semantic": node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
            "semantic_labels_only": node.TEST.SEMANTIC_LABELS_ONLY,
            "object_mask_threshold": node.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": node.TEST.OVERLAP_THRESHOLD,
            "panoptic_scores": node.TEST.PANOPTIC_SCORES,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "strip_memory": node.TEST.STRIP_MEMORY,
            "elastic": cfg.MODEL.PROSCALE.ELASTIC,
            "gated": bool(cfg.MODEL.PROSCALE.GATE),
        }

    def forward(
        self, batched_inputs: list[dict], target_counts: Sequence[int] | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: of each image, ``image`` ``(3, H, W)`` in the range of ``pixel_mean``;
                when training ``instances`` with ``gt_classes`` and ``gt_masks``; otherwise
                optionally ``height`` and ``width``, the size of the results.
            target_counts: see :meth:`~proscale.modeling.losses.SetCriterion.forward`.

        Returns:
            weighted losses by name; or for each image a dict of ``sem_seg``, ``panoptic_seg`` (map
            and segments) and ``instances``, as switched on; see
            :mod:`~proscale.modeling.postprocessing`.
        """
        # (3, H, W) each, of different sizes.
        images = [self.normalise(sample["image"]) for sample in batched_inputs]
        if self.training:
            return self._losses(images, batched_inputs, target_counts)
        # Images of different size are not padded to a common one, so that an image's result does
        # not depend on its batch.
        results: list[dict] = [{}] * len(images)
        for indices in self.groups_of_size(images):
            group = ImageList.from_tensors([images[i] for i in indices], self.size_divisibility)
            # Class logits (B, Q, K + 1) and mask logits (B, Q, H/4, W/4).
            outputs = self.infer(group.tensor)
            # Results image by image, in the order of the batch.
            for index, class_logits, mask_logits in zip(
                indices, outputs["pred_logits"], outputs["pred_masks"], strict=True
            ):
                results[index] = self.results(
                    class_logits,
                    mask_logits,
                    padded_size=_size(group.tensor),
                    image_size=_size(images[index]),
                    sample=batched_inputs[index],
                )
        return results

    def set_budget(
        self,
        budget: Sequence[int] | None = None,
        *,
        decoder_layers: int | None = None,
        token_merging: TokenMerging = None,
    ) -> None:
        """Choose how much the model computes from now on; None leaves it as it is.

        Args:
            budget: layers of each stage of PRO-SCALE's encoder, the first ones, in training, too.
                The same for all images: a gate is not asked any more.
            decoder_layers: of the transformer decoder, the first ones, in evaluation mode.
            token_merging: see
                :func:`~proscale.modeling.backbones.token_merging_config.parse_token_merging`.

        Raises:
            ValueError: there are fewer layers, the pixel decoder has no stages, or the backbone
                does not merge tokens in this way.
        """
        if budget is not None:
            self.progressive_encoder.set_budget(budget)
            self.gated = False
        if decoder_layers is not None:
            predictor = self.sem_seg_head.get_submodule("predictor")
            assert isinstance(predictor, MultiScaleMaskedTransformerDecoder)
            predictor.set_depth(decoder_layers)
        if token_merging is not None:
            if not isinstance(self.backbone, MixVisionTransformer):
                raise ValueError(
                    f"the backbone is a {type(self.backbone).__name__}: expected a "
                    "MixVisionTransformer, which merges tokens"
                )
            self.backbone.set_token_merging(token_merging)

    @property
    def progressive_encoder(self) -> ProgressiveEncoder:
        """PRO-SCALE's encoder; :class:`ValueError` where the pixel decoder has another."""
        encoder = self.sem_seg_head.get_submodule("pixel_decoder.transformer.encoder")
        if not isinstance(encoder, ProgressiveEncoder):
            raise ValueError(
                f"the encoder is a {type(encoder).__name__}: expected PRO-SCALE's, whose stages "
                "have budgets"
            )
        return encoder

    def infer(self, batch: Tensor) -> dict:
        """The head's outputs for ``(B, 3, H, W)``, normalised and padded, in the number format of
        inference."""
        # Backbone, pixel decoder, transformer decoder.
        with self.inference_precision():
            features = self.features(batch)
            if self.gated:
                return gated_outputs(self.sem_seg_head, features)
            return self.sem_seg_head(features)

    def infer_budgets(
        self, sample: dict, budgets: Iterable[Sequence[int]]
    ) -> tuple[dict[str, Tensor], Iterator[dict]]:
        """One image with one budget of PRO-SCALE's encoder after the other.

        Args:
            sample: as of :meth:`forward`.
            budgets: see :meth:`set_budget`.

        Returns:
            the backbone's features, which are computed once, and the results by budget.
        """
        image = self.normalise(sample["image"])
        batch = ImageList.from_tensors([image], self.size_divisibility).tensor
        with self.inference_precision():
            features = self.features(batch)

        def results() -> Iterator[dict]:
            for budget in budgets:
                with budget_of(self.progressive_encoder, budget), self.inference_precision():
                    outputs = self.sem_seg_head(features)
                yield self.results(
                    outputs["pred_logits"][0],
                    outputs["pred_masks"][0],
                    padded_size=_size(batch),
                    image_size=_size(image),
                    sample=sample,
                )

        return features, results()

    def _losses(
        self, images: list[Tensor], samples: list[dict], target_counts: Sequence[int] | None
    ) -> dict[str, Tensor]:
        # Images of a batch are padded to the largest, and so are their ground-truth masks.
        batch = ImageList.from_tensors(images, self.size_divisibility)
        targets = [
            prepare_target(sample["instances"].to(self.device), _size(batch.tensor))
            for sample in samples
        ]
        features = self.features(batch.tensor)
        # Matching and losses; all predictions, all images.
        if self.elastic:
            return elastic_losses(
                lambda: self._supervised(features),
                self.progressive_encoder,
                self.criterion,
                targets,
                target_counts,
            )
        losses = self.criterion(self._supervised(features), targets, target_counts)
        # λ_cls, λ_ce and λ_dice, the same for every prediction (Mask2Former, §4.1).
        return {name: loss * self.criterion.weight_dict[name] for name, loss in losses.items()}

    def _supervised(self, features: dict[str, Tensor]) -> dict:
        """The head's outputs that have losses."""
        outputs = self.sem_seg_head(features)
        # Deep supervision: every layer's predictions are matched and penalised.
        if not self.deep_supervision:
            del outputs["aux_outputs"]
        return outputs

    def results(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        *,
        padded_size: Size,
        image_size: Size,
        sample: dict,
    ) -> dict:
        """The results of one image, whose outputs may come from elsewhere, an exported file say.

        Args:
            class_logits, mask_logits: (Q, K + 1) and (Q, h, w), a quarter of ``padded_size``.
            padded_size: height and width of what the network has seen.
            image_size: the part of it that is the image.
            sample: as of :meth:`forward`, as is what is returned.
        """
        # The original image's size, which the mapper has resized.
        size = (sample.get("height", image_size[0]), sample.get("width", image_size[1]))
        # One pass over the masks, strip by strip, serves all kinds of results.
        collectors: dict[str, Collector] = {}
        if self.semantic_on:
            kind = SemanticLabels if self.semantic_labels_only else SemanticScores
            collectors["sem_seg"] = kind(class_logits, size)
        collectors |= self.segment_collectors(class_logits, size)
        sizes = Sizes(padded=padded_size, image=image_size, result=size)
        return self.collect(collectors, mask_logits, sizes)

    def collect(
        self, collectors: dict[str, Collector], mask_logits: Tensor, sizes: Sizes
    ) -> dict[str, Any]:
        """The collectors' results from masks ``(Q, h, w)``, by the same names."""
        return collect_results(
            collectors,
            mask_logits,
            sizes,
            resize_first=self.resize_first,
            strip_bytes=self.strip_bytes,
        )

    def segment_collectors(self, class_logits: Tensor, size: Size) -> dict[str, Collector]:
        """Collectors of the panoptic and the instance results, as far as switched on."""
        collectors: dict[str, Collector] = {}
        if self.panoptic_on:
            # Every pixel to one query (MaskFormer, §3.4).
            collectors["panoptic_seg"] = PanopticMap(
                class_logits,
                size,
                things=self.things,
                score_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
                with_scores=self.panoptic_scores,
            )
        if self.instance_on:
            # Pairs of query and class, the best of all.
            collectors["instances"] = InstanceSet(
                class_logits,
                size,
                max_instances=self.max_instances,
                things=self.things if self.panoptic_on else None,
            )
        return collectors


def thing_classes(cfg: CfgNode) -> list[int]:
    """Contiguous ids of the things of the data set that the model is made for."""
    # The first data set; its things are those of all.
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    metadata = MetadataCatalog.get(names[0]) if names else None
    ids = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    if ids is None and cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        raise ConfigError(
            f"MODEL.MASK_FORMER.TEST.PANOPTIC_ON needs a panoptic data set, but DATASETS.TRAIN is "
            f"{tuple(cfg.DATASETS.TRAIN)}: expected names registered with "
            "proscale.data.register_coco_panoptic or built into Detectron2"
        )
    return sorted((ids or {}).values())


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def prepare_target(instances: Instances, padded_size: Size) -> dict[str, Tensor]:
    """Ground truth of one image, its masks padded to the batch's size.

    ``instances`` has ``gt_classes`` ``(N,)`` and ``gt_masks`` ``(N, H, W)``, a tensor or
    Detectron2's ``BitMasks``. Returns ``labels`` ``(N,)`` int64 and ``masks``
    ``(N, *padded_size)`` bool.
    """
    # On the right and below, as the image.
    masks = instances.gt_masks
    masks = getattr(masks, "tensor", masks).bool()
    bottom, right = padded_size[0] - masks.shape[1], padded_size[1] - masks.shape[2]
    return {"labels": instances.gt_classes, "masks": F.pad(masks, (0, right, 0, bottom))}


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The criterion of ``MODEL.MASK_FORMER``."""
    node = cfg.MODEL.MASK_FORMER
    # The weights of the losses are those of the matching costs as well (Mask2Former, §4.1).
    weights = {
        "loss_ce": node.CLASS_WEIGHT,
        "loss_mask": node.MASK_WEIGHT,
        "loss_dice": node.DICE_WEIGHT,
    }
    matcher = HungarianMatcher(
        cost_class=node.CLASS_WEIGHT,
        cost_mask=node.MASK_WEIGHT,
        cost_dice=node.DICE_WEIGHT,
        num_points=node.TRAIN_NUM_POINTS,
        cost_place=node.PLACE_WEIGHT,
    )
    # Deep supervision: the auxiliary outputs' losses, loss_ce_0 …, weigh the same.
    auxiliary = range(node.DEC_LAYERS - 1)
    return SetCriterion(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        weight_dict=weights | {f"{k}_{i}": w for i in auxiliary for k, w in weights.items()},
        eos_coef=node.NO_OBJECT_WEIGHT,
        losses=("labels", "masks"),
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
    )
