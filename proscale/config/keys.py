"""Every configuration key of the project: default, meaning, accepted values.

Keys that Mask2Former and PRO-SCALE published keep their names, so that their YAML files load
unchanged. Keys marked *new* are this project's own; their defaults keep the published behaviour.
"""

from detectron2.config import CfgNode
from detectron2.projects.deeplab import add_deeplab_config


def add_proscale_config(cfg: CfgNode) -> None:
    """Add all keys of Mask2Former, PRO-SCALE and this project to ``cfg``, in place.

    Args:
        cfg: the node returned by ``detectron2.config.get_cfg()``.
    """
    # Published files carry a few DeepLab keys (poly schedule, stem type); they must be known.
    add_deeplab_config(cfg)
    _add_datasets(cfg)
    _add_input(cfg)
    _add_solver(cfg)
    _add_distributed(cfg)
    _add_test(cfg)
    _add_mask_former(cfg)
    _add_pixel_decoder(cfg)
    _add_proscale(cfg)
    _add_weights(cfg)
    _add_swin(cfg)
    _add_mit(cfg)
    _add_timm(cfg)
    _add_segformer(cfg)
    _add_sliding_window(cfg)


def _add_datasets(cfg: CfgNode) -> None:
    # New. The user's own data sets, a list of blocks; see proscale.config.own_data. Where it is not
    # empty, DATASETS.TRAIN and TEST, the mapper, the results and NUM_CLASSES follow from it.
    cfg.DATASETS.OWN = []
    # Share of the images that SAMPLER_TRAIN RandomSubsetTrainingSampler takes. Detectron2 0.6 reads
    # the key, but does not have it.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0


def _add_input(cfg: CfgNode) -> None:
    # One of proscale.data.MAPPERS: which mapper turns a data set entry into a training sample.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # SSD's photometric distortion (brightness, contrast, saturation, hue).
    cfg.INPUT.COLOR_AUG_SSD = False
    # Crops in which one category covers more than this share of the labels are drawn again.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Pad training images to a multiple of this; -1 leaves them as they are.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter: side of the square crop (pixels), and the range of the random scale.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0


def _add_solver(cfg: CfgNode) -> None:
    # ADAMW | SGD.
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # New. Learning rate of the segmentation head (``sem_seg_head``) relative to BASE_LR.
    cfg.SOLVER.HEAD_MULTIPLIER = 1.0
    # Weight decay of embeddings (queries, levels, position tables).
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # New. Number format of automatic mixed precision: float16 | bfloat16 | auto, which is float16
    # on CUDA, as published, and bfloat16 on the CPU, where float16 is slow.
    cfg.SOLVER.AMP.DTYPE = "auto"
    # New. Every batch of IMS_PER_BATCH images is processed in this many parts whose gradients are
    # summed: the same step in a fraction of the memory.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # New. How many numbered checkpoints stay in OUTPUT_DIR, the newest; 0 keeps all. With 1 there
    # is none to go back to should the last one be damaged.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0
    # New. How many steps of a training, resumed parts included, may be left out because a matching
    # cost, a loss or the gradients' norm was not finite; the next such step ends the training. What
    # float16's search for its loss scale leaves out does not count.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0


def _add_distributed(cfg: CfgNode) -> None:
    node = cfg.DISTRIBUTED = CfgNode()
    # New. Seconds that a process waits for the others before the job ends as one that hangs: longer
    # than the slowest thing that only one of them does, which is computing instances' AP.
    node.TIMEOUT = 600
    # New. Divide parameters, gradients and the optimiser's state among the processes (PyTorch's
    # fully_shard), rather than hold all of them in each: the same training in less memory, with
    # more to exchange. Files are the same. A single process holds all. Of MODEL.CHANNELS_LAST there
    # remain the images.
    node.SHARDED = False


def _add_test(cfg: CfgNode) -> None:
    # New. Also compute Boundary AP of instances and the classes' Boundary IoU (Cheng et al. 2021).
    cfg.TEST.BOUNDARY_IOU = False
    # New. Write panoptic predictions (PNG and JSON) and instances (JSON) below OUTPUT_DIR as COCO's
    # test server takes them.
    cfg.TEST.SAVE_PREDICTIONS = False


def _add_mask_former(cfg: CfgNode) -> None:
    # New. Hold images and weights of convolutions with channels innermost (NHWC): the same results,
    # sooner.
    cfg.MODEL.CHANNELS_LAST = False
    node = cfg.MODEL.MASK_FORMER = CfgNode()

    # Losses of every decoder layer's predictions, not the last one's alone.
    node.DEEP_SUPERVISION = True
    # Weight of “no object” among the classes.
    node.NO_OBJECT_WEIGHT = 0.1
    # Weights of the loss terms and, as in the papers, of the matching costs.
    node.CLASS_WEIGHT = 1.0
    node.DICE_WEIGHT = 1.0
    node.MASK_WEIGHT = 20.0
    # Points per mask at which costs and mask losses are computed.
    node.TRAIN_NUM_POINTS = 112 * 112
    # Candidates per point, and the share of points taken by uncertainty (PointRend).
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    # The transformer decoder; there is this one.
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # Only "multi_scale_pixel_decoder": the decoder attends the pixel decoder's levels in turn.
    node.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    # Attention heads.
    node.NHEADS = 8
    # Dropout of the pixel decoder's encoder; the masked-attention decoder has none, as published.
    node.DROPOUT = 0.1
    # Width of the decoder's feed-forward networks.
    node.DIM_FEEDFORWARD = 2048
    # Predictions made, the one from the learned queries included: 10 means 9 layers.
    node.DEC_LAYERS = 6
    # Norms before the branches rather than after the sums.
    node.PRE_NORM = False
    # Width and number of the queries.
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    # Project the levels to HIDDEN_DIM even where they already have this width.
    node.ENFORCE_INPUT_PROJ = False
    # Published files carry it; encoders are counted by SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS, so
    # that only 0 is accepted here.
    node.ENC_LAYERS = 0

    # Images are padded to a multiple of this; negative takes the backbone's own.
    node.SIZE_DIVISIBILITY = 32

    node.TEST = CfgNode()
    # Which results inference returns, and evaluation looks at.
    node.TEST.SEMANTIC_ON = True
    node.TEST.INSTANCE_ON = False
    node.TEST.PANOPTIC_ON = False
    # Panoptic: queries scored at or below this are dropped.
    node.TEST.OBJECT_MASK_THRESHOLD = 0.0
    # Panoptic: a segment keeps its place if at least this share of its mask is its own.
    node.TEST.OVERLAP_THRESHOLD = 0.0
    # New. Panoptic: give every segment a ``score``, the class probability of its query.
    node.TEST.PANOPTIC_SCORES = False
    # Crop and resize masks to the requested size before scores are computed from them. Always done
    # for panoptic and instance results.
    node.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False
    # New. Results are made from masks in strips of this size (MiB, float32 masks of all queries in
    # use); the memory on the way from mask logits to results is a few times that. Small strips stay
    # in a CPU's cache; a GPU wants fewer and larger ones.
    node.TEST.STRIP_MEMORY = 8
    # New. Give every pixel's best class, (H, W), rather than the scores of all K classes, (K, H, W)
    # float32: for COCO at 4000x6000 pixels 0.2 GB rather than 12.8 GB.
    node.TEST.SEMANTIC_LABELS_ONLY = False
    # New. Number format that backbone and head infer in: float32 | bfloat16 | float16, by autocast.
    # What is faster depends on the machine: `proscale benchmark --dtype fp32 bf16` tells.
    node.TEST.DTYPE = "float32"


def _add_pixel_decoder(cfg: CfgNode) -> None:
    node = cfg.MODEL.SEM_SEG_HEAD
    # MSDeformAttnPixelDecoder, Mask2Former's | PROSCALE.
    node.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    # Width of the mask embedding.
    node.MASK_DIM = 256
    # Deformable layers of MSDeformAttnPixelDecoder; PROSCALE counts by PROSCALE_NUM_LAYERS.
    node.TRANSFORMER_ENC_LAYERS = 0
    # Backbone levels that the deformable encoder sees; the others join in the feature pyramid.
    node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    # Sampling points per head and level.
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # Heads; 0 takes MASK_FORMER.NHEADS. (Published files leave it at 8, and the published code
    # takes MASK_FORMER.NHEADS whatever it says.)
    node.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 0
    # New. Feed-forward width; the published code has 1024 built in.
    node.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024


def _add_proscale(cfg: CfgNode) -> None:
    node = cfg.MODEL.PROSCALE = CfgNode()
    # (p1, p2, p3): layers over res5 alone, then res5 + res4, then res5 + res4 + res3.
    node.PROSCALE_NUM_LAYERS = [3, 3, 3]
    # maxpool: the Light-Pixel Embedding; conv: Mask2Former's 3x3 convolution.
    node.MASK_OUTPUT_OPS = "maxpool"
    # Gate of the Token Re-Calibration: True a 1x1 convolution, False a linear layer, None no TRC.
    node.IS_EXCITE_CONV = False
    # The gate is sigmoid(EXCITE_TEMP * f(res3)).
    node.EXCITE_TEMP = 0.1
    # New. How the TRC reads tokens: "released" as the published weights were trained (tokens and
    # maps are exchanged without a transposition), "transposed" correctly, "none" no TRC.
    node.RECALIBRATION = "released"
    # Add a stage's input tokens to the output of each of its layers (stages one and two).
    node.RESIDUAL = False


def _add_weights(cfg: CfgNode) -> None:
    # New. Read any pickle that MODEL.WEIGHTS or a checkpoint to resume from is. That runs whatever
    # code is in it; without, only tensors and plain values are accepted.
    cfg.MODEL.TRUST_WEIGHTS = False


def _add_swin(cfg: CfgNode) -> None:
    node = cfg.MODEL.SWIN = CfgNode()
    # Side of the images it was pre-trained on; only APE depends on it.
    node.PRETRAIN_IMG_SIZE = 224
    # Pixels to the side of a token; channels, blocks and heads by stage; tokens to the side of a
    # window; and the other arguments of Swin's authors.
    node.PATCH_SIZE = 4
    node.EMBED_DIM = 96
    node.DEPTHS = [2, 2, 6, 2]
    node.NUM_HEADS = [3, 6, 12, 24]
    node.WINDOW_SIZE = 7
    node.MLP_RATIO = 4.0
    node.QKV_BIAS = True
    # Scale of query-key products; None means head_dim ** -0.5.
    node.QK_SCALE = None
    # Dropout of tokens, of attention, and of whole branches (rising from 0 with depth).
    node.DROP_RATE = 0.0
    node.ATTN_DROP_RATE = 0.0
    node.DROP_PATH_RATE = 0.3
    # Absolute position embedding, PRETRAIN_IMG_SIZE / PATCH_SIZE squared, resized to the input.
    node.APE = False
    # Norm behind the patch embedding.
    node.PATCH_NORM = True
    # Stages that are given out, at strides 4, 8, 16 and 32.
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute blocks in the backward pass instead of keeping their activations.
    node.USE_CHECKPOINT = False


def _add_mit(cfg: CfgNode) -> None:
    node = cfg.MODEL.MIT = CfgNode()
    # New, as all of MODEL.MIT. b0 | b1 | b2 | b3 | b4 | b5; empty builds a model from the next five
    # keys, whose defaults are those of b0.
    node.VARIANT = ""
    # Width of a head; a stage is EMBED_DIM x NUM_HEADS wide.
    node.EMBED_DIM = 32
    # Blocks and heads, by stage.
    node.DEPTHS = [2, 2, 2, 2]
    node.NUM_HEADS = [1, 2, 5, 8]
    # Reduction of the keys' and values' map to the side, by stage.
    node.SR_RATIOS = [8, 4, 2, 1]
    # Width of the feed-forward networks over that of the tokens.
    node.MLP_RATIO = 4.0
    # Probability with which branches are left out in training, rising from 0 with depth.
    node.DROP_PATH_RATE = 0.1
    # Epsilon of all norms.
    node.NORM_EPS = 1e-6
    # none (also None, the default, which a string or a list may replace) | bsm_hq | bsm_fast |
    # n2d_2x2 | a list with a dictionary for each of the four stages, of q_mode, q_r, q_sx, q_sy,
    # q_s and kv_mode, kv_r, kv_sx, kv_sy, kv_s: see parse_token_merging in
    # proscale/modeling/backbones/token_merging_config.py.
    node.TOKEN_MERGING = None
    # Successive blocks of a stage that share the bsm matching of the first; 1 matches anew in each.
    node.MATCHING_REUSE = 1
    # Halve the images (nearest) before the first stage; strides are then 8 to 64.
    node.DOWNSAMPLE = False


def _add_timm(cfg: CfgNode) -> None:
    node = cfg.MODEL.TIMM = CfgNode()
    # New. Which network of timm TimmBackbone is, such as tf_efficientnet_lite0.
    node.NAME = ""
    # New. Its batch normalisation: FrozenBN, as Detectron2 has it with ImageNet weights | BN, for
    # random weights | SyncBN, over all processes.
    node.NORM = "FrozenBN"


def _add_segformer(cfg: CfgNode) -> None:
    node = cfg.MODEL.SEM_SEG_HEAD
    # New. Projections of SegFormerHead: openmmlab (convolution, norm, ReLU) | nvidia (linear).
    # CONVS_DIM is its width, NORM its norm: BN | SyncBN.
    node.SEGFORMER_FORM = "openmmlab"
    # New. Probability with which SegFormerHead drops a channel before its classifier.
    node.SEGFORMER_DROPOUT = 0.1


def _add_sliding_window(cfg: CfgNode) -> None:
    node = cfg.TEST.SLIDING_WINDOW = CfgNode()
    # New. Semantic evaluation by windows of CROP_SIZE every STRIDE (height, width; pixels of the
    # resized image), the mean of what overlaps. Images smaller than a window are seen whole.
    node.ENABLED = False
    node.CROP_SIZE = [1024, 1024]
    node.STRIDE = [768, 768]
