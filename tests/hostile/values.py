"""Values of configuration keys on the command line: out of range, of another kind, not together."""

import os
from collections.abc import Callable

from proscale import Predictor
from proscale.config import setup_cfg
from tests.hostile.cases import Case, Place, command, train
from tests.hostile.material import own_block

CPU = ("MODEL.DEVICE", "cpu")
RESNET = ("MODEL.BACKBONE.NAME", "build_resnet_backbone")
HEAD = ("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead")
RT_M2F = (*HEAD, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "RTDETRPixelDecoder")
RT_M2F += ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "256")
RT_NODE = "MODEL.RT_DETR_ENCODER."
PROSCALE = (*HEAD, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "PROSCALE")
LITE = (*HEAD, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "LiteDETRPixelDecoder")
MANY = "9" * 5000
HEX = "0x" + "F" * 5000

# A key, a value, and what is told of it.
_VALUES = [
    ("MODEL.META_ARCHITECTURE", "MaskFomer", "MaskFormer"),
    ("MODEL.BACKBONE.NAME", "resnet50", "D2SwinTransformer"),
    ("MODEL.SEM_SEG_HEAD.NAME", "Head", "MaskFormerHead"),
    ("MODEL.SEM_SEG_HEAD.NORM", "BatchNorm", "SyncBN"),
    ("MODEL.RESNETS.DEPTH", "51", "18 or 34 or 50 or 101 or 152"),
    ("INPUT.FORMAT", "rgb", "RGB or BGR"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "0", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "-3", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "0", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "-1", "whole numbers from 0"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "-1", "whole numbers from 0"),
    ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN", "MSDeformAttnPixelDecoder"),
    ("MODEL.SEM_SEG_HEAD.SEGFORMER_FORM", "mmseg", "openmmlab or nvidia"),
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", "0", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "-1", "whole numbers from 0"),
    (
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD",
        "0",
        "whole numbers from 1",
    ),
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "-8", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "0", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.DEC_LAYERS", "0", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.ENC_LAYERS", "6", "expected 0"),
    ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "multi_scale_pixel_decoder"),
    ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "0", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", "0.5", "numbers from 1"),
    ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "1.5", "numbers from 0 to 1"),
    ("MODEL.MASK_FORMER.TEST.DTYPE", "half", "float32 or bfloat16 or float16"),
    ("MODEL.MASK_FORMER.TEST.STRIP_MEMORY", "0", "whole numbers from 1"),
    ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[3, -1, 3]", "whole numbers from 0"),
    ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[3, 1.5, 3]", "whole numbers from 0"),
    ("MODEL.PROSCALE.MASK_OUTPUT_OPS", "avgpool", "maxpool or conv"),
    ("MODEL.LITE_DETR.NUM_LAYERS", "0", "whole numbers from 1"),
    ("MODEL.LITE_DETR.NUM_BLOCKS", "0", "whole numbers from 1"),
    ("MODEL.LITE_DETR.NUM_HIGH_LEVELS", "0", "whole numbers from 1"),
    ("MODEL.LITE_DETR.KEY_AWARE", "maybe", "True or False"),
    ("MODEL.PROSCALE.RECALIBRATION", "correct", "released or transposed or none"),
    (RT_NODE + "NORM", "GN", "BN or SyncBN or FrozenBN"),
    (RT_NODE + "HIDDEN_DIM", "0", "whole numbers from 1"),
    (RT_NODE + "NUM_LAYERS", "-1", "whole numbers from 0"),
    (RT_NODE + "NHEADS", "0", "whole numbers from 1"),
    (RT_NODE + "DIM_FEEDFORWARD", "0", "whole numbers from 1"),
    (RT_NODE + "EXPANSION", "0.0", "numbers above 0"),
    (RT_NODE + "USE_ENCODER_LEVELS", "res5", "a list"),
    ("MODEL.MIT.VARIANT", "b6", "'' or b0 or b1"),
    ("MODEL.MIT.DEPTHS", "[2, 0, 2, 2]", "whole numbers from 1"),
    ("MODEL.MIT.MATCHING_REUSE", "0", "whole numbers from 1"),
    ("MODEL.TIMM.NORM", "GN", "FrozenBN or BN or SyncBN"),
    ("TEST.SLIDING_WINDOW.STRIDE", "[0, 4]", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "0", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.DROPOUT", "7.0", "numbers from 0 to 1"),
    ("MODEL.MASK_FORMER.CLASS_WEIGHT", "-1.0", "numbers from 0"),
    ("MODEL.SWIN.NUM_HEADS", "[3, 0, 12, 24]", "whole numbers from 1"),
    ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", "numbers above 0"),
    ("MODEL.PIXEL_MEAN", "[1.0]", "3 numbers each with INPUT.FORMAT BGR"),
    ("INPUT.IMAGE_SIZE", "0", "whole numbers from 1"),
    ("INPUT.MIN_SIZE_TRAIN", "(0,)", "whole numbers from 1"),
    ("INPUT.MIN_SCALE", "0.0", "numbers above 0"),
    ("SOLVER.IMS_PER_BATCH", "0", "whole numbers from 1"),
    ("SOLVER.BASE_LR", "-0.1", "numbers from 0"),
    ("SOLVER.OPTIMIZER", "ADAM", "ADAMW or SGD"),
    ("SOLVER.LR_SCHEDULER_NAME", "Poly", "WarmupPolyLR"),
    ("SOLVER.AMP.DTYPE", "fp16", "auto or float16 or bfloat16"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all", "value or norm or full_model"),
    ("SOLVER.ACCUMULATION_STEPS", "0", "whole numbers from 1"),
    ("SOLVER.CHECKPOINTS_TO_KEEP", "-1", "whole numbers from 0"),
    ("SOLVER.MAX_SKIPPED_STEPS", "-1", "whole numbers from 0"),
    ("DATALOADER.NUM_WORKERS", "-1", "whole numbers from 0"),
    ("MODEL", "3", "META_ARCHITECTURE"),
    ("SOLVER.MAX_ITER", MANY, "a whole number"),
    ("SOLVER.MAX_ITER", HEX, "whole numbers from 0"),
    ("SOLVER.MAX_ITER", "9" * 23, "whole numbers from 0 to 2147483647"),
    ("SOLVER.MAX_ITER", "-" * 100_000 + "1", "a whole number"),
    ("SOLVER.MAX_ITER", "[" * 5000, "a whole number"),
    ("SOLVER.MAX_ITER", "1\0", "a whole number"),
    ("SOLVER.BASE_LR", HEX, "a number"),
    ("SOLVER.BASE_LR", "1e38", "numbers from 0 to 1000"),
    ("SOLVER.BASE_LR", "1e999", "numbers from 0 to 1000"),
    ("SOLVER.MOMENTUM", "-1.0", "numbers from 0 to 1"),
    ("SOLVER.GAMMA", "1e999", "finite numbers"),
    ("SOLVER.IMS_PER_BATCH", "1000000", "whole numbers from 1 to 65536"),
    ("SOLVER.WARMUP_METHOD", "none", "constant or linear"),
    ("SEED", "4294967296", "whole numbers from -1 to 2147483647"),
    ("SEED", "-2", "whole numbers from -1 to 2147483647"),
    ("INPUT.MAX_SCALE", "1e9", "at most 1000000"),
    ("INPUT.MAX_SCALE", "17.0", "sides of at most 16384 pixels with INPUT.IMAGE_SIZE 1024"),
    ("INPUT.MAX_SCALE", "0.05", "INPUT.MIN_SCALE, 0.1, or more"),
    ("INPUT.IMAGE_SIZE", "100000", "whole numbers from 1 to 16384"),
    ("INPUT.RANDOM_FLIP", "both", "horizontal or vertical or none"),
    ("INPUT.CROP.TYPE", "centre", "relative or relative_range"),
    ("DATALOADER.NUM_WORKERS", "100000", "whole numbers from 0 to 1024"),
    ("MODEL.PIXEL_MEAN", "[1e999, 0.0, 0.0]", "finite numbers"),
    ("MODEL.RESNETS.NORM", "XX", "BN or SyncBN"),
    ("MODEL.RESNETS.OUT_FEATURES", "['res9']", "one or more of ['stem', 'res2'"),
    ("MODEL.RESNETS.OUT_FEATURES", "[]", "one or more of ['stem', 'res2'"),
    ("MODEL.RESNETS.STEM_TYPE", "wide", "basic or deeplab"),
    ("MODEL.RESNETS.NUM_GROUPS", "0", "whole numbers from 1"),
    ("MODEL.RESNETS.RES5_DILATION", "3", "1 or 2 or 4"),
    ("MODEL.RESNETS.RES5_DILATION", "4", "1 or 2"),
    ("MODEL.MASK_FORMER.DEC_LAYERS", "100000", "whole numbers from 1 to 200"),
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "1000000", "whole numbers from 1 to 8192"),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "1000000", "whole numbers from 1 to 65536"),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "100000", "whole numbers from 0 to 200"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1000000", "whole numbers from 1 to 65536"),
    ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[3, 100000, 3]", "whole numbers from 0 to 200"),
    ("MODEL.SWIN.DEPTHS", "[2, 2, 100000, 2]", "whole numbers from 0 to 200"),
    ("MODEL.SWIN.MLP_RATIO", "1000000", "numbers above 0, at most 64"),
    ("SOLVER.WEIGHT_DECAY_BIAS", "[1]", "float or None"),
    ("MODEL.SWIN.QK_SCALE", "wide", "float or None"),
    ("MODEL.MIT.TOKEN_MERGING", "3", "list or str or None"),
    ("OUTPUT_DIR", "~nosuchuser/x", "./~nosuchuser/x (there is no user ~nosuchuser)"),
    ("MODEL.WEIGHTS", "~nosuchuser/x", "./~nosuchuser/x (there is no user ~nosuchuser)"),
    ("SOLVER.MAX_ITER", "-1", "whole numbers from 0"),
    ("SOLVER.MAX_ITER", "nan", "a whole number"),
    ("SOLVER.MAX_ITER", "1e3", "a whole number"),
    ("SOLVER.MAX_ITER", "__import__('os').system('true')", "a whole number"),
    ("SOLVER.IMS_PER_BATCH", "9" * 23, ""),
    ("SOLVER.CHECKPOINT_PERIOD", "0", "whole numbers from 1"),
    ("SOLVER.CHECKPOINT_PERIOD", "9" * 23, ""),
    ("SOLVER.WARMUP_ITERS", "-5", "whole numbers from 0"),
    ("SOLVER.BASE_LR", "1e400", "numbers from 0"),
    ("SOLVER.BASE_LR", "float('nan')", "a number"),
    ("SOLVER.BASE_LR", MANY, ""),
    ("SOLVER.WEIGHT_DECAY", "-1.0", "numbers from 0"),
    ("SEED", "9" * 23, ""),
    ("SEED", "one", "a whole number"),
    ("INPUT.MAX_SCALE", "inf", "a number"),
    ("INPUT.IMAGE_SIZE", "1000000000", ""),
    ("INPUT.MIN_SIZE_TEST", "-1", "whole numbers from 0"),
    ("INPUT.MIN_SIZE_TEST", "9" * 23, ""),
    ("DATALOADER.NUM_WORKERS", "1.5", "a whole number"),
    ("TEST.EVAL_PERIOD", "-1", "whole numbers from 0"),
    ("MODEL.DEVICE", "gpu", "cpu, cuda"),
    ("MODEL.DEVICE", "meta", ""),
    ("MODEL.DEVICE", "cuda:99999999999999999999", ""),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9" * 23, ""),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "((" * 3000, ""),
    ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[100000, 1, 1]", ""),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "9" * 23, ""),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "9" * 23, ""),
    ("OUTPUT_DIR", "True", "a text"),
]

# Values that do not go together, and the beginning of the message.
_RULES = {
    "float16 on the CPU": (
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"),
        "SOLVER.AMP.DTYPE is 'float16': expected auto or bfloat16",
    ),
    "no bound of gradients": (
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0: expected numbers above 0",
    ),
    "no views": (
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"),
        "TEST.AUG.MIN_SIZES is (): expected short sides",
    ),
    "one side of a window": (
        ("TEST.SLIDING_WINDOW.ENABLED", "True", "TEST.SLIDING_WINDOW.CROP_SIZE", "[512]"),
        "TEST.SLIDING_WINDOW.CROP_SIZE is [512]: expected [height, width]",
    ),
    "windows with gaps": (
        ("TEST.SLIDING_WINDOW.ENABLED", "True", "TEST.SLIDING_WINDOW.STRIDE", "[768, 2048]"),
        "TEST.SLIDING_WINDOW.STRIDE is [768, 2048]: expected at most CROP_SIZE, [1024, 1024]",
    ),
    "windows of panoptic results": (
        (
            *("MODEL.META_ARCHITECTURE", "MaskFormer", "TEST.SLIDING_WINDOW.ENABLED", "True"),
            *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"),
        ),
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True: expected False with TEST.SLIDING_WINDOW",
    ),
    "heads of the decoder": (
        (*HEAD, "MODEL.MASK_FORMER.HIDDEN_DIM", "64", "MODEL.MASK_FORMER.NHEADS", "5"),
        "MODEL.MASK_FORMER.HIDDEN_DIM is 64: expected multiples of 4 and of "
        "MODEL.MASK_FORMER.NHEADS, 5",
    ),
    "heads of the encoder": (
        (*HEAD, "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", "7"),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM is 128: expected multiples of 32 and of the encoder's heads",
    ),
    "groups of the norms": (
        (*HEAD, "MODEL.SEM_SEG_HEAD.CONVS_DIM", "48"),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM is 48: expected multiples of 32",
    ),
    "stages of the progressive encoder": (
        (*PROSCALE, "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", "[3, 3]"),
        "MODEL.PROSCALE.PROSCALE_NUM_LAYERS is [3, 3]: expected one number for each of the "
        "encoder's 3 levels ['res3', 'res4', 'res5']",
    ),
    "no gate to transpose for": (
        (
            *(*PROSCALE, "MODEL.PROSCALE.RECALIBRATION", "transposed"),
            *("MODEL.PROSCALE.IS_EXCITE_CONV", "None"),
        ),
        "MODEL.PROSCALE.RECALIBRATION is 'transposed': expected none with IS_EXCITE_CONV None",
    ),
    "width of the hybrid encoder": (
        (*RT_M2F, RT_NODE + "HIDDEN_DIM", "128"),
        "MODEL.RT_DETR_ENCODER.HIDDEN_DIM is 128: expected the width of the pyramid, "
        "MODEL.SEM_SEG_HEAD.CONVS_DIM 256",
    ),
    "heads of the hybrid encoder": (
        (*RT_M2F, RT_NODE + "NHEADS", "7"),
        "MODEL.RT_DETR_ENCODER.NHEADS is 7: expected a divisor of HIDDEN_DIM, 256",
    ),
    "attention within a level that is not there": (
        (*RT_M2F, RT_NODE + "USE_ENCODER_LEVELS", "['res2']"),
        "MODEL.RT_DETR_ENCODER.USE_ENCODER_LEVELS is ['res2']: expected some of the encoder's "
        "levels ['res3', 'res4', 'res5']",
    ),
    "blocks without a channel": (
        (*RT_M2F, RT_NODE + "EXPANSION", "0.001"),
        "MODEL.RT_DETR_ENCODER.EXPANSION is 0.001: expected numbers that make 1 to 8192 channels",
    ),
    "blocks of unequal length": (
        (*LITE, "MODEL.LITE_DETR.NUM_BLOCKS", "4"),
        "MODEL.LITE_DETR.NUM_LAYERS is 6: expected multiples of MODEL.LITE_DETR.NUM_BLOCKS, 4",
    ),
    "no fine level": (
        (*LITE, "MODEL.LITE_DETR.NUM_HIGH_LEVELS", "3"),
        "MODEL.LITE_DETR.NUM_HIGH_LEVELS is 3: expected fewer than the encoder's 3 levels "
        "['res3', 'res4', 'res5']",
    ),
    "norm of SegFormer": (
        ("MODEL.SEM_SEG_HEAD.NAME", "SegFormerHead", "MODEL.SEM_SEG_HEAD.NORM", "GN"),
        "MODEL.SEM_SEG_HEAD.NORM is 'GN': expected BN or SyncBN",
    ),
    "channels of ResNet-18": (
        ("MODEL.RESNETS.DEPTH", "18"),
        "MODEL.RESNETS.RES2_OUT_CHANNELS is 256: expected 64 with MODEL.RESNETS.DEPTH 18",
    ),
    "dilation of ResNet-18": (
        (
            *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
            *("MODEL.RESNETS.RES5_DILATION", "2"),
        ),
        "MODEL.RESNETS.RES5_DILATION is 2: expected 1 with MODEL.RESNETS.DEPTH 18",
    ),
    "sides of test images": (
        ("INPUT.MIN_SIZE_TEST", "100000", "INPUT.MAX_SIZE_TEST", "0"),
        "INPUT.MIN_SIZE_TEST is 100000: expected sides of at most 16384 pixels",
    ),
    "sides of training images": (
        ("INPUT.MIN_SIZE_TRAIN", "(640, 100000)", "INPUT.MAX_SIZE_TRAIN", "200000"),
        "INPUT.MIN_SIZE_TRAIN is (640, 100000): expected sides of at most 16384 pixels",
    ),
    "heads of Swin": (
        ("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.NUM_HEADS", "[3, 6, 12]"),
        "MODEL.SWIN.NUM_HEADS is [3, 6, 12]: expected one number for each of the stages",
    ),
    "widths of Swin": (
        ("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.NUM_HEADS", "[5, 6, 12, 24]"),
        "MODEL.SWIN.NUM_HEADS is [5, 6, 12, 24]: expected one number for each of the stages",
    ),
    "stages of Swin": (
        ("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.OUT_FEATURES", "['res6']"),
        "MODEL.SWIN.OUT_FEATURES is ['res6']: expected one or more of ['res2'",
    ),
    "stages of MiT": (
        ("MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.SR_RATIOS", "[8, 4, 2]"),
        "MODEL.MIT.SR_RATIOS is [8, 4, 2]: expected 4 whole numbers from 1, one for each stage",
    ),
    "a token merging that is not known": (
        ("MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.TOKEN_MERGING", "tome"),
        "MODEL.MIT.TOKEN_MERGING is 'tome': expected none, bsm_hq, bsm_fast",
    ),
    "a merging of stage two without a cell": (
        (
            *("MODEL.BACKBONE.NAME", "MixVisionTransformer", "MODEL.MIT.TOKEN_MERGING"),
            "[{}, {'q_mode': 'bsm', 'q_r': 0.5, 'q_sy': 2}, {}, {}]",
        ),
        "MODEL.MIT.TOKEN_MERGING, stage 2: q_sx is missing",
    ),
}

# Options of ``flops``, which builds the model, and words that are told.
_MODELS = {
    "levels that the backbone lacks": (
        ("MODEL.SWIN.OUT_FEATURES", "['res2']"),
        "IN_FEATURES",
    ),
    "levels of a ResNet that there are not": (
        (
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            "MODEL.RESNETS.OUT_FEATURES",
            "['res9']",
        ),
        "MODEL.RESNETS.OUT_FEATURES",
    ),
    "no levels of a ResNet": (
        (*RESNET, "MODEL.RESNETS.OUT_FEATURES", "[]"),
        "MODEL.RESNETS.OUT_FEATURES",
    ),
    "a ResNet-18 of other widths": (
        (
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "256",
        ),
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
    ),
    "norm of a ResNet": (
        (*RESNET, "MODEL.RESNETS.NORM", "XX"),
        "MODEL.RESNETS.NORM",
    ),
    "levels that the head lacks": (
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res9']"),
        "res9",
    ),
    "levels that the encoder lacks": (
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", "['a', 'b', 'c']"),
        "in_features",
    ),
}

# Runs of train_net.py, and words that are told.
_RUNS = {
    "no arguments": ((), "config"),
    "a seed of 33 bits": (("SEED", "4294967296"), "SEED"),
    "a rate that overflows": (("SOLVER.BASE_LR", "1e38"), "SOLVER.BASE_LR"),
    "an absurd scale": (("INPUT.MAX_SCALE", "1e9"), "INPUT.MAX_SCALE"),
    "no device": (("--num-gpus", "0", "MODEL.DEVICE", "cuda"), "MODEL.DEVICE"),
    "minus one device": (("--num-gpus", "-1"), "--num-gpus"),
    "output on the web": (("OUTPUT_DIR", "http://127.0.0.1:9/a"), "OUTPUT_DIR"),
    "output with a zero byte": (("OUTPUT_DIR", "a\0b"), "OUTPUT_DIR"),
    "output of an unknown user": (("OUTPUT_DIR", "~nosuchuser/a"), "OUTPUT_DIR"),
    "output of 300 letters": (("OUTPUT_DIR", "a" * 300), "OUTPUT_DIR"),
    "an unknown mapper": (("INPUT.DATASET_MAPPER_NAME", "mapper"), "DATASET_MAPPER_NAME"),
    "weights on the web": (("MODEL.WEIGHTS", "http://127.0.0.1:9/a.pth"), "MODEL.WEIGHTS"),
    "weights with a zero byte": (("MODEL.WEIGHTS", "a\0.pth"), "MODEL.WEIGHTS"),
    "weights that are not there": (
        ("MODEL.WEIGHTS", "nowhere.pth"),
        "MODEL.WEIGHTS",
        "nowhere.pth",
    ),
    "weights that are a folder": (("MODEL.WEIGHTS", "own"), "MODEL.WEIGHTS", "own"),
    "unknown data set": (
        ("DATASETS.TRAIN", "('coco_2017_train_panoptik',)"),
        "DATASETS.TRAIN: there is no data set coco_2017_train_panoptik; nearest are "
        "coco_2017_train_panoptic",
    ),
    "a key without value": (("SOLVER.MAX_ITER",), "SOLVER.MAX_ITER is left over"),
    "an unknown key": (("SOLVER.MAX_ITR", "3"), "no config key SOLVER.MAX_ITR", "SOLVER.MAX_ITER"),
    "an unknown flag": (("--resumee",), "--resumee"),
}


def _value(key: str, value: str, accepted: str) -> Case:
    def run(place: Place) -> object:
        return setup_cfg("", [*CPU, key, value])

    words = (f"{key} is ", ": expected ", accepted)
    short = value if len(value) < 40 else f"{value[:8]}… ({len(value)})"
    return Case(f"{key} {short!r}", run, words)


def _rule(name: str, overrides: tuple[str, ...], message: str) -> Case:
    return Case(name, lambda place: setup_cfg("", [*CPU, *overrides]), (message,))


def _model(name: str, overrides: tuple[str, ...], *words: str) -> Case:
    def run(place: Place) -> object:
        place.copy("small.yaml"), place.copy("own")
        return command("flops", "--config-file", "small.yaml", "--size", "64x64", *overrides)(place)

    return Case(f"model: {name}", run, words)


def _run(name: str, arguments: tuple[str, ...], *words: str) -> Case:
    def run(place: Place) -> None:
        place.copy("small.yaml"), place.copy("own")
        train(*(("--config-file", "small.yaml") if arguments else ()), *arguments)

    # An address on the command line is the user's own.
    asks = "weights on the web" in name
    return Case(f"training: {name}", run, words, is_light=False, may_connect=asks)


def _predictor(weights: object) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        place.copy("own")
        return Predictor(setup_cfg(str(place.copy("small.yaml"))), weights)

    return run


def _published_without_network(place: Place) -> None:
    os.environ["FVCORE_CACHE"] = str(place / "cache")
    block = own_block(place.copy("own"), "panoptic")
    place.write(
        "own.json", {"_BASE_": "coco/panoptic/proscale_r50_333", "DATASETS": {"OWN": [block]}}
    )
    train("--config-file", "own.json", "OUTPUT_DIR", "out")


CASES = [
    *(_value(*spec) for spec in _VALUES),
    *(_rule(name, *spec) for name, spec in _RULES.items()),
    *(_model(name, *spec) for name, spec in _MODELS.items()),
    *(_run(name, *spec) for name, spec in _RUNS.items()),
    Case("Predictor without weights", _predictor(None), ("MODEL.WEIGHTS",)),
    Case("Predictor with weights that are not there", _predictor("no.pth"), ("no.pth",)),
    Case(
        "published weights without a network",
        _published_without_network,
        ("MODEL.WEIGHTS",),
        is_light=False,
        may_connect=True,
    ),
]
