"""Every configuration key of the project: accepted values, default, meaning.

Keys that Mask2Former and PRO-SCALE published keep their names, so that their YAML files load
unchanged. Keys marked *New* are this project's own; their defaults keep the published behaviour.
"""
# ruff: noqa: RUF012
# Lists are lists in a configuration; they are copied into it.

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``; ``words`` are for messages."""

    words: str
    low: float
    high: float


# A key's type is that of its default. A kind adds a range, or names as in a registry or a Literal,
# where another value would pass unnoticed, or stop in the middle of PyTorch without naming the key.
# Upper bounds are far beyond sensible values: they keep a slip from filling memory for minutes.
PositiveInt = Annotated[int, Range("whole numbers from 1 to 2147483647", 1, 2**31 - 1)]
NonNegativeInt = Annotated[int, Range("whole numbers from 0 to 2147483647", 0, 2**31 - 1)]
PositiveFloat = Annotated[float, Range("numbers above 0, at most 1000000", math.ulp(0.0), 1e6)]
NonNegativeFloat = Annotated[float, Range("numbers from 0 to 1000000", 0, 1e6)]
FloatFromOne = Annotated[float, Range("numbers from 1 to 1000", 1, 1000)]
Fraction = Annotated[float, Range("numbers from 0 to 1", 0, 1)]
# Parts of a model, and of its results; sides of images as in image_file.
Layers = Annotated[int, Range("whole numbers from 0 to 200", 0, 200)]
LayersFromOne = Annotated[int, Range("whole numbers from 1 to 200", 1, 200)]
Width = Annotated[int, Range("whole numbers from 1 to 8192", 1, 8192)]
Ratio = Annotated[float, Range("numbers above 0, at most 64", math.ulp(0.0), 64)]
Count = Annotated[int, Range("whole numbers from 1 to 65536", 1, 2**16)]
Side = Annotated[int, Range("whole numbers from 1 to 16384", 1, 2**14)]
Divisor = Annotated[int, Range("whole numbers to 16384", -(2**31), 2**14)]
HeadName = Annotated[str, SEM_SEG_HEADS_REGISTRY]
# Detectron2's names of norms.
Norm = Literal[
    "", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", None
]

# Detectron2's keys of which a wrong value would pass unnoticed, or stop in the middle of it.
DETECTRON2_KEYS: dict[str, Any] = {
    # The rank is added to it, and NumPy's generators take 32 bits.
    "SEED": Annotated[int, Range("whole numbers from -1 to 2147483647", -1, 2**31 - 1)],
    "DATALOADER.NUM_WORKERS": Annotated[int, Range("whole numbers from 0 to 1024", 0, 1024)],
    "INPUT.FORMAT": Literal["RGB", "BGR", "L", "YUV-BT.601"],
    "INPUT.RANDOM_FLIP": Literal["horizontal", "vertical", "none"],
    "INPUT.CROP.TYPE": Literal["relative", "relative_range", "absolute", "absolute_range"],
    "INPUT.MIN_SIZE_TRAIN": tuple[PositiveInt, ...],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Literal["choice", "range"],
    "INPUT.MAX_SIZE_TRAIN": NonNegativeInt,
    "INPUT.MIN_SIZE_TEST": NonNegativeInt,
    "INPUT.MAX_SIZE_TEST": NonNegativeInt,
    "SOLVER.IMS_PER_BATCH": Count,
    "SOLVER.MAX_ITER": NonNegativeInt,
    "SOLVER.BASE_LR": Annotated[float, Range("numbers from 0 to 1000", 0, 1000)],
    "SOLVER.MOMENTUM": Fraction,
    "SOLVER.WEIGHT_DECAY": NonNegativeFloat,
    "SOLVER.WEIGHT_DECAY_BIAS": float | None,
    "SOLVER.WARMUP_ITERS": NonNegativeInt,
    "SOLVER.WARMUP_METHOD": Literal["constant", "linear"],
    "SOLVER.LR_SCHEDULER_NAME": Literal["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR"],
    "SOLVER.CHECKPOINT_PERIOD": PositiveInt,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Literal["value", "norm", "full_model"],
    "TEST.EVAL_PERIOD": NonNegativeInt,
    "MODEL.META_ARCHITECTURE": Annotated[str, META_ARCH_REGISTRY],
    "MODEL.PIXEL_STD": list[PositiveFloat],
    "MODEL.BACKBONE.NAME": Annotated[str, BACKBONE_REGISTRY],
    "MODEL.RESNETS.DEPTH": Literal[18, 34, 50, 101, 152],
    "MODEL.RESNETS.NORM": Norm,
    "MODEL.RESNETS.NUM_GROUPS": Width,
    "MODEL.RESNETS.WIDTH_PER_GROUP": Width,
    "MODEL.RESNETS.STEM_TYPE": Literal["basic", "deeplab"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": Width,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": Width,
    "MODEL.RESNETS.RES4_DILATION": Literal[1, 2],
    "MODEL.RESNETS.RES5_DILATION": Literal[1, 2, 4],
    "MODEL.SEM_SEG_HEAD.NAME": HeadName,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": Count,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": NonNegativeInt,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": Width,
    "MODEL.SEM_SEG_HEAD.NORM": Norm,
}


class Keys:
    """Declares keys of ``node``: annotations are the accepted values, values the defaults. The text
    below explains the keys between it and the text before. ``blocks`` are all declared.
    """

    node: ClassVar[str]
    blocks: ClassVar[list[type["Keys"]]] = []

    def __init_subclass__(cls, node: str) -> None:
        cls.node = node
        Keys.blocks.append(cls)


class _Datasets(Keys, node="DATASETS"):
    OWN: list[dict] = []
    """New. The user's own data sets, a list of blocks; see proscale.config.own_data. Where it is
    not empty, DATASETS.TRAIN and TEST, the mapper, the results and NUM_CLASSES follow from it."""
    PERSON_BOXES_TEST: str = ""
    """New. Pose estimation: a JSON file with the boxes of persons that a detector found in the
    images of DATASETS.TEST, a list of {image_id, category_id, bbox, score} as COCO's files of
    results; empty evaluates in the annotated boxes."""


class _DataLoader(Keys, node="DATALOADER"):
    RANDOM_SUBSET_RATIO: Annotated[float, Range("numbers above 0, at most 1", math.ulp(0.0), 1)] = (
        1.0
    )
    """Fraction of images that RandomSubsetTrainingSampler takes. Detectron2 0.6 lacks the key."""


class _Input(Keys, node="INPUT"):
    DATASET_MAPPER_NAME: str = "mask_former_semantic"
    """One of proscale.data.MAPPERS: which mapper turns a data set entry into a training sample."""
    COLOR_AUG_SSD: bool = False
    """SSD's photometric distortion (brightness, contrast, saturation, hue)."""
    SIZE_DIVISIBILITY: Divisor = -1
    """Pad training images to a multiple of this; -1 leaves them as they are."""
    # Large-scale jitter (Ghiasi et al., Copy-Paste, CVPR 2021).
    IMAGE_SIZE: Side = 1024
    MIN_SCALE: PositiveFloat = 0.1
    MAX_SCALE: PositiveFloat = 2.0
    """Large-scale jitter: side of the square crop (pixels), and the range of the random scale."""


class _InputPose(Keys, node="INPUT.POSE"):
    # Augmentation of SegFormer++'s pose estimation; t is normal, truncated to -1 … 1.
    FLIP_PROB: Fraction = 0.5
    """New, as all of INPUT.POSE. Probability of mirroring the image."""
    HALF_BODY_PROB: Fraction = 0.3
    HALF_BODY_MIN_KEYPOINTS: Count = 9
    HALF_BODY_UPPER_PROB: Fraction = 0.7
    HALF_BODY_PADDING: PositiveFloat = 1.5
    """Probability of seeing half of a body that has as many labelled keypoints or more; of the
    upper half where both have enough; size of the crop over the extent of the half's keypoints.
    There is none without keypoint_upper_body in the data set's metadata."""
    SCALE_FACTOR: Fraction = 0.5
    """The crop's size is multiplied by 1 + SCALE_FACTOR x t."""
    SHIFT_PROB: Fraction = 0.3
    SHIFT_FACTOR: NonNegativeFloat = 0.16
    """Probability of moving the crop, and by how much: SHIFT_FACTOR x t of its sides."""
    ROTATION_PROB: Fraction = 0.6
    ROTATION: NonNegativeFloat = 80.0
    """Probability of rotating it, and by how much: ROTATION x t, degrees."""


class _Crop(Keys, node="INPUT.CROP"):
    SINGLE_CATEGORY_MAX_AREA: Fraction = 1.0
    """Crops in which one category covers more than this fraction of the labels are drawn again."""
    MIN_SIZE: list[Side] = [400, 500, 600]
    """New. detr_detection: lengths of the short edge before the crop."""


class _Solver(Keys, node="SOLVER"):
    # The recipe of Mask2Former (§4.1): AdamW, and a tenth of the rate for the backbone.
    OPTIMIZER: Literal["ADAMW", "SGD"] = "ADAMW"
    """ADAMW | SGD."""
    BACKBONE_MULTIPLIER: NonNegativeFloat = 0.1
    """Learning rate of the backbone relative to BASE_LR."""
    HEAD_MULTIPLIER: NonNegativeFloat = 1.0
    """New. Learning rate of the segmentation head (``sem_seg_head``) relative to BASE_LR."""
    WEIGHT_DECAY_EMBED: NonNegativeFloat = 0.0
    """Weight decay of embeddings (queries, levels)."""
    WEIGHT_DECAY_POSITION: NonNegativeFloat = 0.0
    """New. Weight decay of Swin's position tables and MiT's position convolutions; published: 0,
    in pose estimation WEIGHT_DECAY."""
    # Long trainings.
    ACCUMULATION_STEPS: Count = 1
    """New. Every batch of IMS_PER_BATCH images is processed in this many parts whose gradients are
    summed: the same step in a fraction of the memory."""
    CHECKPOINTS_TO_KEEP: NonNegativeInt = 0
    """New. How many numbered checkpoints stay in OUTPUT_DIR, the newest; 0 keeps all. With 1 there
    is none to go back to should the last one be damaged."""
    EMA_DECAY: Annotated[float, Range("numbers from 0 to below 1", 0, math.nextafter(1, 0))] = 0.0
    """New. Decay of an exponential moving average of the weights, such as 0.999, which is evaluated
    and saved in their place; 0 keeps none."""
    EARLY_STOPPING: NonNegativeInt = 0
    """New. The training ends when so many evaluations in a row were no better than the best by
    TEST.BEST_METRIC; 0 goes on to MAX_ITER."""
    MAX_SKIPPED_STEPS: NonNegativeInt = 0
    """New. How many steps of a training, resumed parts included, may be skipped because a matching
    cost, a loss or the gradients' norm was not finite; the next such step ends the training. Steps
    that float16's search for its loss scale skips do not count."""


class _MixedPrecision(Keys, node="SOLVER.AMP"):
    DTYPE: Literal["auto", "float16", "bfloat16"] = "auto"
    """New. Number format of automatic mixed precision: float16 | bfloat16 | auto, which is float16
    on CUDA, as published, and bfloat16 on the CPU, where float16 is slow."""


class _Distributed(Keys, node="DISTRIBUTED"):
    TIMEOUT: PositiveInt = 600
    """New. Seconds that a process waits for the others before the job ends as one that hangs:
    longer than the slowest work of one process alone, which is computing instances' AP."""
    SHARDED: bool = False
    """New. Divide parameters, gradients and the optimiser's state among the processes (PyTorch's
    fully_shard), rather than hold all of them in each: the same training in less memory, with more
    communication. Files are the same. A single process holds all. MODEL.CHANNELS_LAST then applies
    to the images only."""


class _Logging(Keys, node="LOGGING"):
    TRACKERS: list[Literal["wandb", "mlflow", "trackio"]] = []
    """New. Where a training's metrics are sent, besides metrics.json and TensorBoard's files:
    packages that are installed, wandb, mlflow and trackio."""
    PROJECT: str = "proscale"
    """New. Name of the project, or experiment, there."""


class _Test(Keys, node="TEST"):
    BEST_METRIC: str = ""
    """New. Task and metric, such as panoptic_seg/PQ, segm/AP or sem_seg/mIoU: of all evaluations
    of a training the weights of the best by it are kept as model_best.pth; empty keeps none."""
    BOUNDARY_IOU: bool = False
    """New. Also compute Boundary AP of instances and Boundary IoU (Cheng et al., CVPR 2021)."""
    SAVE_PREDICTIONS: bool = False
    """New. Write panoptic predictions (PNG and JSON) and instances (JSON) below OUTPUT_DIR as
    COCO's test server takes them."""


class _SlidingWindow(Keys, node="TEST.SLIDING_WINDOW"):
    ENABLED: bool = False
    CROP_SIZE: list[Side] = [1024, 1024]
    STRIDE: list[Side] = [768, 768]
    """New. Semantic evaluation by windows of CROP_SIZE every STRIDE (height, width; pixels of the
    resized image), the mean where they overlap. Images smaller than a window are seen whole."""


class _Model(Keys, node="MODEL"):
    CHANNELS_LAST: bool = False
    """New. Channels innermost (NHWC) in images and convolutions: the same results, sooner."""
    TRUST_WEIGHTS: bool = False
    """New. Read any pickle given as MODEL.WEIGHTS or as a checkpoint to resume from. That runs all
    code in it; otherwise only tensors and plain values are accepted. Counts on the command line,
    not in a file."""


class _MaskFormer(Keys, node="MODEL.MASK_FORMER"):
    # Losses: Cheng et al., Mask2Former, CVPR 2022, §3 and §4.1; points as in PointRend.
    DEEP_SUPERVISION: bool = True
    """Losses of every decoder layer's predictions, not the last one's alone."""
    NO_OBJECT_WEIGHT: NonNegativeFloat = 0.1
    """Weight of “no object” among the classes."""
    CLASS_WEIGHT: NonNegativeFloat = 1.0
    DICE_WEIGHT: NonNegativeFloat = 1.0
    MASK_WEIGHT: NonNegativeFloat = 20.0
    """Weights of the loss terms and, as in the papers, of the matching costs."""
    TRAIN_NUM_POINTS: Count = 112 * 112
    """Points per mask at which costs and mask losses are computed."""
    OVERSAMPLE_RATIO: FloatFromOne = 3.0
    IMPORTANCE_SAMPLE_RATIO: Fraction = 0.75
    """Candidates per point, and the fraction of points taken by uncertainty (PointRend)."""
    # The transformer decoder with masked attention (Mask2Former, §3.2).
    TRANSFORMER_DECODER_NAME: str = "MultiScaleMaskedTransformerDecoder"
    """The transformer decoder; there is this one."""
    TRANSFORMER_IN_FEATURE: Literal["multi_scale_pixel_decoder"] = "multi_scale_pixel_decoder"
    """Only "multi_scale_pixel_decoder": the decoder attends the pixel decoder's levels in turn."""
    NHEADS: Width = 8
    """Attention heads."""
    DROPOUT: Fraction = 0.1
    """Dropout of the pixel decoder's encoder; the masked-attention decoder has none."""
    DIM_FEEDFORWARD: Count = 2048
    """Width of the decoder's feed-forward networks."""
    DEC_LAYERS: LayersFromOne = 6
    """Predictions made, the one from the learned queries included: 10 means 9 layers."""
    PRE_NORM: bool = False
    """Norms before the branches rather than after the sums."""
    HIDDEN_DIM: Width = 256
    NUM_OBJECT_QUERIES: Count = 100
    """Width and number of the queries."""
    SELECTED_QUERIES: Annotated[int, Range("whole numbers from 0 to 65536", 0, 2**16)] = 0
    """New. More queries, chosen from the encoder's tokens (Deformable DETR, §A.4; Mask DINO, §3.2):
    for many small objects. NUM_OBJECT_QUERIES are learned and stay, for stuff."""
    PLACE_WEIGHT: NonNegativeFloat = 0.0
    """New. Matching cost of a selected query whose token is outside of the target (DeFCN, §3.1)."""
    RELATIVE_COORDINATES: bool = False
    """New. Give masks of selected queries the pixels' distances from their tokens, which tell equal
    objects apart (after CondInst, §3.1)."""
    ENFORCE_INPUT_PROJ: bool = False
    """Project the levels to HIDDEN_DIM even where they already have this width."""
    ENC_LAYERS: Literal[0] = 0
    """In published files; SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS counts encoders, so only 0 here."""
    # Images.
    SIZE_DIVISIBILITY: Divisor = 32
    """Images are padded to a multiple of this; negative takes the backbone's own."""


class _MaskFormerTest(Keys, node="MODEL.MASK_FORMER.TEST"):
    # Results.
    SEMANTIC_ON: bool = True
    INSTANCE_ON: bool = False
    PANOPTIC_ON: bool = False
    """Which results inference returns, and evaluation looks at."""
    # Panoptic fusion, as in MaskFormer (Cheng et al., NeurIPS 2021, §3.4).
    OBJECT_MASK_THRESHOLD: Fraction = 0.0
    """Panoptic: queries scored at or below this are dropped."""
    OVERLAP_THRESHOLD: Fraction = 0.0
    """Panoptic: a segment keeps its place if at least this fraction of its mask is its own."""
    PANOPTIC_SCORES: bool = False
    """New. Panoptic: give every segment a ``score``, the class probability of its query."""
    SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE: bool = False
    """Crop and resize masks before they are scored; always for panoptic and instance results."""
    # Time and memory.
    DEC_LAYERS: Layers = 0
    """New. Predict from the first layers of the transformer decoder alone, counted as
    MASK_FORMER.DEC_LAYERS counts them; 0 takes all."""
    SELECTED_QUERIES: Annotated[int, Range("whole numbers from 0 to 65536", 0, 2**16)] = 0
    """New. Queries chosen from the tokens in inference; 0 takes MASK_FORMER.SELECTED_QUERIES. An
    image has more objects than a crop of it."""
    STRIP_MEMORY: Count = 8
    """New. Results are made from masks in strips of this size (MiB, float32 masks of all queries
    in use); the memory on the way from mask logits to results is a few times that. Small strips
    stay in a CPU's cache; a GPU wants fewer and larger ones."""
    SEMANTIC_LABELS_ONLY: bool = False
    """New. Give every pixel's best class, (H, W), rather than the scores of all K classes,
    (K, H, W) float32: for COCO at 4000x6000 pixels 0.2 GB rather than 12.8 GB."""
    DTYPE: Literal["float32", "bfloat16", "float16"] = "float32"
    """New. Number format that backbone and head infer in: float32 | bfloat16 | float16, by
    autocast. Which is faster depends on the machine: compare with
    `proscale benchmark --dtype fp32 bf16`."""


class _SemSegHead(Keys, node="MODEL.SEM_SEG_HEAD"):
    # The pixel decoder: FPN and deformable encoder (Zhu et al., Deformable DETR, ICLR 2021).
    PIXEL_DECODER_NAME: HeadName = "MSDeformAttnPixelDecoder"
    """MSDeformAttnPixelDecoder, Mask2Former's | PROSCALE | RTDETRPixelDecoder, RT-M2F's |
    LiteDETRPixelDecoder, Lite-M2F's."""
    MASK_DIM: Width = 256
    """Width of the mask embedding."""
    TRANSFORMER_ENC_LAYERS: Layers = 0
    """Deformable layers of MSDeformAttnPixelDecoder; PROSCALE counts by PROSCALE_NUM_LAYERS, and
    LiteDETRPixelDecoder by LITE_DETR.NUM_LAYERS."""
    DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: list[str] = ["res3", "res4", "res5"]
    """Backbone levels that the deformable encoder sees; the others join in the feature pyramid."""
    DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS: Width = 4
    """Sampling points per head and level."""
    DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS: NonNegativeInt = 0
    """Heads; 0 takes MASK_FORMER.NHEADS. (Published files leave it at 8, and the published code
    takes MASK_FORMER.NHEADS whatever it says.)"""
    DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD: Count = 1024
    """New. Feed-forward width; the published code has 1024 built in."""
    # The all-MLP head (Xie et al., SegFormer, NeurIPS 2021, §3.2).
    SEGFORMER_FORM: Literal["openmmlab", "nvidia"] = "openmmlab"
    """New. Projections of SegFormerHead: openmmlab (convolution, norm, ReLU) | nvidia (linear).
    CONVS_DIM is its width, NORM its norm: BN | SyncBN."""
    SEGFORMER_DROPOUT: Fraction = 0.1
    """New. Probability with which SegFormerHead drops a channel before its classifier."""


class _ProScale(Keys, node="MODEL.PROSCALE"):
    # The progressive encoder: tokens of finer levels join after p1 and p1 + p2 layers.
    PROSCALE_NUM_LAYERS: list[Layers] = [3, 3, 3]
    """(p1, p2, p3): layers over res5 alone, then res5 + res4, then res5 + res4 + res3."""
    # The Light-Pixel Embedding replaces the 3x3 convolution at stride 4.
    MASK_OUTPUT_OPS: Literal["maxpool", "conv"] = "maxpool"
    """maxpool: the Light-Pixel Embedding; conv: Mask2Former's 3x3 convolution."""
    # The Token Re-Calibration scales tokens of coarser levels by a gate from res3.
    IS_EXCITE_CONV: bool | None = False
    """Gate of the Token Re-Calibration: True a 1x1 convolution, False linear, None no TRC."""
    EXCITE_TEMP: float = 0.1
    """The gate is sigmoid(EXCITE_TEMP * f(res3))."""
    RECALIBRATION: Literal["released", "transposed", "none"] = "released"
    """New. How the TRC reads tokens: "released" as the published weights were trained (tokens and
    maps are exchanged without a transposition), "transposed" correctly, "none" no TRC."""
    RESIDUAL: bool = False
    """Add a stage's input tokens to the output of each of its layers (stages one and two)."""
    # One checkpoint for many budgets.
    ELASTIC: bool = False
    """New. Train the smaller budgets along with the whole encoder: see
    proscale/modeling/elastic.py."""
    BUDGET: list[Layers] = []
    """New. (q1, q2, q3): compute the first layers of each stage alone in inference; empty computes
    all. Quality is as trained with MODEL.PROSCALE.ELASTIC."""
    GATE: list[list] = []
    """New. Budgets of which inference chooses one for each image, by a layer that
    `proscale train-gate` trains; empty has no gate."""


class _RTDETREncoder(Keys, node="MODEL.RT_DETR_ENCODER"):
    # RTDETRPixelDecoder: the hybrid encoder (Zhao et al., RT-DETR, CVPR 2024, §4.2).
    HIDDEN_DIM: Width = 256
    """New. Width of the levels, that of SEM_SEG_HEAD.CONVS_DIM."""
    USE_ENCODER_LEVELS: list[str] = ["res5"]
    """New. Levels with self-attention among their own tokens."""
    NUM_LAYERS: Layers = 1
    NHEADS: Width = 8
    DIM_FEEDFORWARD: Count = 1024
    """New. Layers of that attention, their heads, and the width of their feed-forward networks."""
    EXPANSION: PositiveFloat = 1.0
    """New. Width of the convolutions that fuse two levels, relative to HIDDEN_DIM; published: 1.0,
    and 0.5 in the smaller models. PROSCALE.MASK_OUTPUT_OPS chooses the layer at stride 4."""
    NORM: Literal["BN", "SyncBN", "FrozenBN"] = "BN"
    """New. Its batch norm: BN | SyncBN, over all processes, as two images a GPU are too few |
    FrozenBN, for weights that were trained elsewhere."""


class _LiteDetr(Keys, node="MODEL.LITE_DETR"):
    # The interleaved encoder of Lite-M2F (Li et al., Lite DETR, CVPR 2023).
    NUM_LAYERS: LayersFromOne = 6
    NUM_BLOCKS: LayersFromOne = 3
    """New, as all of MODEL.LITE_DETR. Layers, in blocks of equal length. The last layer of a block
    updates all tokens, the others those of the high levels: 6 layers in 3 blocks are the paper's
    (2+1)x3, in 1 block its (6+1)x1."""
    NUM_HIGH_LEVELS: LayersFromOne = 2
    """High levels: the coarsest ones, here res5 and res4; fewer than the encoder's."""
    KEY_AWARE: bool = True
    """Key-aware deformable attention: places are weighed by their content."""
    SMALL_FFN: bool = True
    """Fine tokens have a feed-forward network of width CONVS_DIM. PROSCALE.MASK_OUTPUT_OPS chooses
    the layer at stride 4."""


class _Detector(Keys, node="MODEL.DETECTOR"):
    # META_ARCHITECTURE Detector (Zhang et al., DINO, ICLR 2023; Zhu et al., Deformable DETR, ICLR
    # 2021). MASK_FORMER.HIDDEN_DIM and NHEADS are its width and heads, the encoder's levels and
    # points those of SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES and _N_POINTS.
    ENCODER: Literal["full", "proscale", "lite"] = "full"
    """New, as all of MODEL.DETECTOR. The encoder: full, every layer sees all levels | proscale,
    PRO-SCALE's stages | lite, Lite DETR's blocks, by MODEL.LITE_DETR."""
    NUM_LEVELS: LayersFromOne = 4
    """Levels of the encoder. Those beyond the backbone's are made of its coarsest one."""
    ENC_LAYERS: Layers = 6
    """Layers of the full encoder."""
    PROSCALE_NUM_LAYERS: list[Layers] = [0, 3, 3, 3]
    """Layers of PRO-SCALE's encoder, one number for each level, coarse to fine: [0, 3, 3, 3] has
    the extra level enter together with res5."""
    DIM_FEEDFORWARD: Count = 2048
    """Width of the feed-forward networks of encoder and decoder."""
    DEC_LAYERS: LayersFromOne = 6
    """Layers of the decoder."""
    QUERIES: Literal["mixed", "deformable", "learned"] = "mixed"
    """How queries start. mixed: DINO, boxes of the best tokens and learned content | deformable:
    two-stage Deformable DETR, both of the best tokens' boxes | learned: Deformable DETR."""
    NUM_QUERIES: Count = 900
    """Queries; a small image has at most as many as tokens."""
    BOX_REFINEMENT: bool = True
    """Every layer starts from the boxes of the one before. False with learned queries only: from
    the first points."""
    DN_NUMBER: Annotated[int, Range("whole numbers from 0 to 1000", 0, 1000)] = 100
    """Contrastive denoising of mixed queries in training: about how many targets of an image are
    noised; 0 for none."""
    DN_LABEL_NOISE: Fraction = 0.5
    DN_BOX_NOISE: Annotated[float, Range("numbers from 0 to 10", 0, 10)] = 1.0
    """Its noise: half of the first is the fraction of labels that are drawn anew; the corners of
    boxes move by up to half of a box's size times the second."""
    DETECTIONS: Count = 300
    """Boxes per image, the best pairs of query and class; there is no non-maximum suppression."""


class _Swin(Keys, node="MODEL.SWIN"):
    # Liu et al., Swin Transformer, ICCV 2021.
    PRETRAIN_IMG_SIZE: Side = 224
    """Side of the images it was pre-trained on; only APE depends on it."""
    PATCH_SIZE: Width = 4
    EMBED_DIM: Width = 96
    DEPTHS: list[Layers] = [2, 2, 6, 2]
    NUM_HEADS: list[Width] = [3, 6, 12, 24]
    WINDOW_SIZE: Width = 7
    MLP_RATIO: Ratio = 4.0
    QKV_BIAS: bool = True
    """Pixels to the side of a token; channels, blocks and heads by stage; tokens to the side of a
    window; and the other arguments of Swin's authors."""
    QK_SCALE: float | None = None
    """Scale of query-key products; None means head_dim ** -0.5."""
    # Regularisation.
    DROP_RATE: Fraction = 0.0
    ATTN_DROP_RATE: Fraction = 0.0
    DROP_PATH_RATE: Fraction = 0.3
    """Dropout of tokens, of attention, and of whole branches (rising from 0 with depth)."""
    APE: bool = False
    """Absolute position embedding, PRETRAIN_IMG_SIZE / PATCH_SIZE squared, resized to the input."""
    PATCH_NORM: bool = True
    """Norm behind the patch embedding."""
    OUT_FEATURES: list[str] = ["res2", "res3", "res4", "res5"]
    """Stages that are given out, at strides 4, 8, 16 and 32."""
    USE_CHECKPOINT: bool = False
    """Recompute blocks in the backward pass instead of keeping their activations."""


class _MiT(Keys, node="MODEL.MIT"):
    # Mix Transformer (Xie et al., SegFormer, NeurIPS 2021, §3.1).
    VARIANT: Literal["", "b0", "b1", "b2", "b3", "b4", "b5"] = ""
    """New, as all of MODEL.MIT. b0 | b1 | b2 | b3 | b4 | b5; empty builds a model from the next
    five keys, whose defaults are those of b0."""
    EMBED_DIM: Width = 32
    """Width of a head; a stage is EMBED_DIM x NUM_HEADS wide."""
    DEPTHS: list[LayersFromOne] = [2, 2, 2, 2]
    NUM_HEADS: list[Width] = [1, 2, 5, 8]
    """Blocks and heads, by stage."""
    SR_RATIOS: list[Width] = [8, 4, 2, 1]
    """Reduction of the keys' and values' map to the side, by stage."""
    MLP_RATIO: Ratio = 4.0
    """Width of the feed-forward networks over that of the tokens."""
    DROP_PATH_RATE: Fraction = 0.1
    """Probability with which branches are dropped in training, rising from 0 with depth."""
    NORM_EPS: PositiveFloat = 1e-6
    """Epsilon of all norms."""
    # SegFormer++: tokens merged before attention, and split behind it.
    TOKEN_MERGING: str | list[dict] | None = None
    """none (also None, the default, which a string or a list may replace) | bsm_hq | bsm_fast |
    n2d_2x2 | a list with a dictionary for each of the four stages, of q_mode, q_r, q_sx, q_sy, q_s
    and kv_mode, kv_r, kv_sx, kv_sy, kv_s: see parse_token_merging in
    proscale/modeling/backbones/token_merging_config.py."""
    MATCHING_REUSE: PositiveInt = 1
    """Successive blocks of a stage that share the bsm matching of the first; 1 matches anew in
    each."""
    USE_CHECKPOINT: bool = False
    """Recompute blocks in the backward pass instead of keeping their activations."""
    DOWNSAMPLE: bool = False
    """Halve the images (nearest) before the first stage; strides are then 8 to 64."""


class _Timm(Keys, node="MODEL.TIMM"):
    NAME: str = ""
    """New. Which network of timm TimmBackbone is, such as tf_efficientnet_lite0."""
    NORM: Literal["FrozenBN", "BN", "SyncBN"] = "FrozenBN"
    """New. Its norm: FrozenBN, for ImageNet weights | BN, for random weights | SyncBN."""
    USE_CHECKPOINT: bool = False
    """New. Recompute blocks in the backward pass instead of keeping their activations."""


class _Pose(Keys, node="MODEL.POSE"):
    # PoseEstimator: top-down pose estimation of SegFormer++ (Kienzle et al., MIPR 2024).
    INPUT_SIZE: list[Side] = [288, 384]
    """New, as all of MODEL.POSE. Width and height of a person's crop, multiples of 32 pixels."""
    BOX_PADDING: PositiveFloat = 1.25
    """Size of the crop over the person's box."""
    SIGMA: Annotated[float, Range("numbers from 0.5 to 100", 0.5, 100)] = 3.0
    """Standard deviation of a keypoint's Gaussian, in cells of the heatmap."""
    FLIP_TEST: bool = True
    SHIFT_HEATMAP: bool = True
    """Average with the heatmaps of the mirrored crop, these moved by one cell."""
    KEYPOINT_SCORE_THRESH: NonNegativeFloat = 0.2
    """Keypoints with higher scores count in the score of a pose."""
    OKS_NMS_THRESH: Fraction = 0.9
    """Evaluation drops a pose whose similarity (OKS) with a better one of its image is higher."""


class _PoseHead(Keys, node="MODEL.POSE_HEAD"):
    NAME: Literal["SegFormerPoseHead"] = "SegFormerPoseHead"
    """New, as all of MODEL.POSE_HEAD. SegFormerPoseHead: the all-MLP decoder of SegFormer."""
    IN_FEATURES: list[str] = ["res2", "res3", "res4", "res5"]
    """Levels of the backbone."""
    CONVS_DIM: Width = 256
    NORM: Literal["BN", "SyncBN"] = "SyncBN"
    """Width of the decoder, and its norm: SyncBN, over all processes | BN."""
    NUM_KEYPOINTS: Annotated[int, Range("whole numbers from 1 to 1000", 1, 1000)] = 17
    LOSS_WEIGHT: NonNegativeFloat = 1.0
    """Keypoints of a person, and the weight of the loss."""
