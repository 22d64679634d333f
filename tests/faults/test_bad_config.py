"""Configuration files, keys and values: what is wrong is told in one sentence, before any work."""

import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
from detectron2.utils.file_io import PathManager

from proscale.checkpoint import check_weights
from proscale.config import check_datasets, check_output_dir, setup_cfg
from proscale.config.setup import MAX_BYTES
from proscale.errors import ConfigError
from proscale_cli import main

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"
CPU = ["MODEL.DEVICE", "cpu"]

HEAD = ("MODEL.SEM_SEG_HEAD.NAME", "MaskFormerHead")
PROSCALE = (*HEAD, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "PROSCALE")

EVAL = "!!python/object/apply:eval"
SIZES = f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["[int(x * 0.1 * 640) for x in range(5, 21)]"]}}'
MANY = "9" * 5000
HEX = "0x" + "F" * 5000
LAUGHS = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{i}: &a{i} {{{', '.join(f'k{k}: *a{i - 1}' for k in range(9))}}}" for i in range(1, 9)
)

# Texts of config.yaml, and what is told.
FILES = {
    "misspelt key": ("SOLVER: {BASE_RL: 1.0}", ("no config key SOLVER.BASE_RL", "SOLVER.BASE_LR")),
    "misspelt block": ("SOLVR: {BASE_LR: 1.0}", ("no config key SOLVR", "SOLVER")),
    "broken syntax": ("SOLVER: {\n\nMODEL: [", ("config.yaml, line ",)),
    "a tab": ("SOLVER:\n\tMAX_ITER: 1", ("config.yaml, line 2", "\\t")),
    "binary": ("SOLVER: \x01", ("config.yaml: not a readable YAML file", "special characters")),
    "a list": ("- SOLVER", ("config.yaml: it holds a list: expected keys",)),
    "a text": ("SOLVER", ("config.yaml: it holds a text: expected keys",)),
    "a number as key": ("SOLVER: {1: 2}", ("config.yaml, line 1: '1' is no name of a key",)),
    "nested absurdly": ("A: " + "[" * 2000, ("config.yaml: it is nested too deeply",)),
    "aliases that multiply": (LAUGHS, ("config.yaml: its aliases stand for more than 100000",)),
    "an alias of itself": ("SOLVER: &a {B: *a}", ("config.yaml: its aliases stand for",)),
    "a tag that runs a command": (
        'MODEL: !!python/object/apply:os.system ["true"]',
        ("config.yaml, line 1", "!!python/object/apply:os.system is refused", "runs code"),
    ),
    "a tag that evaluates": (
        f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["[1 for x in (1,)]"]}}',
        ("config.yaml, line 1", "apply:eval is refused"),
    ),
    "a tag of a name": ("MODEL: !!python/name:os.system", ("!!python/name:os.system is refused",)),
    "an unknown tag": ("MODEL: !secret 1", ("config.yaml, line 1", "!secret")),
    "_BASE_ that is not there": (
        "_BASE_: nowhere.yaml",
        ("config.yaml: _BASE_ is ", "nowhere.yaml, but there is no such file"),
    ),
    "_BASE_ of itself": ("_BASE_: config.yaml", ("_BASE_ leads in a circle", "config.yaml -> ")),
    "_BASE_ in a circle": ("_BASE_: other.yaml", ("other.yaml: _BASE_ leads in a circle",)),
    "_BASE_ that is a number": ("_BASE_: 3", ("config.yaml: _BASE_ is 3: expected names",)),
    "broken _BASE_": ("_BASE_: broken.yaml", ("broken.yaml, line 1",)),
    "_BASE_ of the web": (
        "_BASE_: http://localhost:1/base.yaml",
        ("config.yaml: _BASE_ is http://localhost:1/base.yaml: expected YAML files",),
    ),
    "_BASE_ of the model zoo": (
        "_BASE_: [detectron2://base.yaml]",
        ("config.yaml: _BASE_ is detectron2://base.yaml: expected YAML files",),
    ),
    "_BASE_ that is no YAML": (
        "_BASE_: /etc/passwd",
        ("config.yaml: _BASE_ is /etc/passwd: expected YAML files (.yaml)",),
    ),
    "_BASE_ with a zero byte": ('_BASE_: "a\\0.yaml"', ("config.yaml: _BASE_ is ", "no such file")),
    "_BASE_ of a user that is not there": (
        "_BASE_: ~nosuchuser/base.yaml",
        ("config.yaml: _BASE_ is ", "~nosuchuser/base.yaml, but there is no such file"),
    ),
    "_BASE_ many times": (
        f"_BASE_: [{', '.join(['empty.yaml'] * 32)}]",
        ("config.yaml: _BASE_ leads to more than 32 files",),
    ),
    "_BASE_ that doubles": ("_BASE_: double0.yaml", ("_BASE_ leads to more than 32 files",)),
    "of absurd size": ("#" * (MAX_BYTES + 1), (f"config.yaml: it has {MAX_BYTES + 1} bytes",)),
    "a number of 5000 digits": (
        f"SOLVER: {{MAX_ITER: {MANY}}}",
        ("config.yaml, line 1: ", "9999… is no number or day"),
    ),
    "a text of 5000 digits": (
        f"SOLVER: {{MAX_ITER: '{MANY}'}}",
        ("SOLVER.MAX_ITER is '9999", "9…: expected a whole number"),
    ),
    "a text that is a number of 5000 digits": (f"OUTPUT_DIR: {HEX}", ("OUTPUT_DIR is a value of",)),
    "a number of 5000 hexadecimal digits": (
        f"SOLVER: {{MAX_ITER: {HEX}}}",
        ("SOLVER.MAX_ITER is a value of more than 4300 digits: expected whole numbers from 0",),
    ),
    "a fraction of 5000 hexadecimal digits": (
        f"SOLVER: {{BASE_LR: {HEX}}}",
        ("SOLVER.BASE_LR is a value of more than 4300 digits: expected a number",),
    ),
    "another number of 5000 hexadecimal digits": (
        f"MODEL: {{FPN: {{OUT_CHANNELS: {HEX}}}}}",
        ("MODEL.FPN.OUT_CHANNELS is a value of more than 4300 digits: expected finite numbers",),
    ),
    "a day on no calendar": (
        "OUTPUT_DIR: 2026-13-45",
        ('config.yaml, line 1: "2026-13-45" is no number or day',),
    ),
    "bytes": ('OUTPUT_DIR: !!binary "aGFsbG8="', ("OUTPUT_DIR is b'hallo': expected a text",)),
    "sizes of 1.1.1": (SIZES.replace("0.1", "1.1.1"), ("apply:eval is refused",)),
    "sizes of .": (SIZES.replace("0.1", "."), ("apply:eval is refused",)),
    "sizes of 5000 digits": (SIZES.replace("640", MANY), ("apply:eval is refused",)),
    "a range to 5000 digits": (SIZES.replace("21", MANY), ("apply:eval is refused",)),
    "another version": ("VERSION: 1", ("config.yaml: VERSION is 1: expected 2",)),
    "a block that is a number": ("MODEL: 3", ("MODEL is 3: expected a block of keys",)),
    "a value that is a block": (
        "SOLVER: {BASE_LR: {A: 1}}",
        ("SOLVER.BASE_LR is {'A': 1}: expected a number",),
    ),
    "a value left out": ("SOLVER: {BASE_LR: }", ("SOLVER.BASE_LR is None: expected a number",)),
    "text for integer": (
        "SOLVER: {MAX_ITER: many}",
        ("config.yaml: SOLVER.MAX_ITER is 'many': expected a whole number, such as 40000",),
    ),
    "true for integer": (
        "SOLVER: {MAX_ITER: true}",
        ("SOLVER.MAX_ITER is True: expected a whole",),
    ),
    "list for number": ("SOLVER: {MAX_ITER: [1]}", ("SOLVER.MAX_ITER is [1]: expected a whole",)),
    "truth for number": ("SOLVER: {BASE_LR: true}", ("SOLVER.BASE_LR is True: expected a number",)),
    "fraction for integer": ("SOLVER: {MAX_ITER: 1.5}", ("MAX_ITER is 1.5: expected a whole",)),
    "text for truth": (
        "INPUT: {COLOR_AUG_SSD: 'yes please'}",
        ("INPUT.COLOR_AUG_SSD is 'yes please': expected True or False",),
    ),
    "number for list": (
        "MODEL: {SWIN: {DEPTHS: 2}}",
        ("MODEL.SWIN.DEPTHS is 2: expected a list of numbers, such as [2, 2, 6, 2]",),
    ),
    "list with a text": (
        "MODEL: {SWIN: {DEPTHS: [2, two, 6, 2]}}",
        ("MODEL.SWIN.DEPTHS is [2, 'two', 6, 2]: expected a list of numbers",),
    ),
    "number for text": ("MODEL: {WEIGHTS: true}", ("MODEL.WEIGHTS is True: expected a text",)),
    "not a number": (
        "SOLVER: {BASE_LR: .nan}",
        ("SOLVER.BASE_LR is nan: expected numbers from 0",),
    ),
}


@pytest.fixture(autouse=True)
def fetched(monkeypatch):
    """Addresses that are asked for; none can be reached."""
    addresses = []

    def get_local_path(address, *_, **__):
        addresses.append(address)
        raise URLError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    return addresses


@pytest.mark.parametrize("fault", FILES)
def test_fault_of_file_is_named(fault, tmp_path, fetched):
    text, words = FILES[fault]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    (tmp_path / "other.yaml").write_text("_BASE_: config.yaml")
    (tmp_path / "broken.yaml").write_text("A: ]")
    (tmp_path / "empty.yaml").touch()
    for i in range(30):
        (tmp_path / f"double{i}.yaml").write_text(
            f"_BASE_: [{', '.join([f'double{i + 1}.yaml'] * 2)}]"
        )
    (tmp_path / "double30.yaml").touch()
    with pytest.raises(ConfigError) as told:
        setup_cfg(str(config), CPU)
    assert all(word in str(told.value) for word in words), told.value
    assert "\n" not in str(told.value)
    assert not fetched


def test_content_of_other_files_is_not_told(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: secret.yaml")
    (tmp_path / "secret.yaml").write_text("root:x:0:0\npass phrase")
    with pytest.raises(ConfigError) as told:
        setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert str(told.value) == f"{tmp_path}/secret.yaml: it holds a text: expected keys with values"


def test_configuration_of_a_run_has_no_base(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml")
    (tmp_path / "base.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"_BASE_ is \['.*base\.yaml'\]: expected none in the conf"
    ):
        setup_cfg(str(tmp_path / "config.yaml"), CPU, saved=True)


def test_address_of_the_user_is_fetched(tmp_path, fetched, monkeypatch):
    with pytest.raises(ConfigError, match=r"https://a/b\.yaml: cannot be fetched: .*no network"):
        setup_cfg("https://a/b.yaml", CPU)
    assert fetched == ["https://a/b.yaml"]
    (tmp_path / "b.yaml").write_text("_BASE_: c.yaml")
    monkeypatch.setattr(PathManager, "get_local_path", lambda _: str(tmp_path / "b.yaml"))
    with pytest.raises(
        ConfigError, match=r"https://a/b\.yaml: _BASE_ is c.yaml: expected YAML files"
    ):
        setup_cfg("https://a/b.yaml", CPU)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "~nosuchuser/x", "\ud800"], ids=ascii)
def test_no_such_configuration(name):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        setup_cfg(name, CPU)


# A key, a value, and what is told of it.
VALUES = [
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
    ("MODEL.PROSCALE.RECALIBRATION", "correct", "released or transposed or none"),
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
    # Numbers that no computer, or none in time, has a use for.
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
    ("OUTPUT_DIR", "~nosuchuser/x", "./~nosuchuser/x (there is no user ~nosuchuser)"),
    ("MODEL.WEIGHTS", "~nosuchuser/x", "./~nosuchuser/x (there is no user ~nosuchuser)"),
]


@pytest.mark.parametrize(
    ("key", "value", "accepted"), VALUES, ids=[f"{key} {value[:20]!a}" for key, value, _ in VALUES]
)
def test_value_out_of_range_is_named(key, value, accepted):
    with pytest.raises(ConfigError) as told:
        setup_cfg("", [*CPU, key, value])
    assert str(told.value).startswith(f"{key} is "), told.value
    assert ": expected " in str(told.value)
    assert accepted in str(told.value)
    assert len(str(told.value)) < 500


# Values that do not go together, and the beginning of the message.
RULES = {
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


@pytest.mark.parametrize("fault", RULES)
def test_values_that_do_not_go_together(fault):
    overrides, message = RULES[fault]
    with pytest.raises(ConfigError) as told:
        setup_cfg("", [*CPU, *overrides])
    assert str(told.value).startswith(message), told.value


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "'1e0'"])
def test_numbers_of_keys_with_floats(text, tmp_path):
    (tmp_path / "config.yaml").write_text(f"SOLVER: {{BASE_LR: {text}}}")
    for cfg in (
        setup_cfg(str(tmp_path / "config.yaml"), CPU),
        setup_cfg("", [*CPU, "SOLVER.BASE_LR", text.strip("'")]),
    ):
        assert type(cfg.SOLVER.BASE_LR) is float
        assert cfg.SOLVER.BASE_LR == 1.0


def test_integers_in_lists_of_floats_stay():
    cfg = setup_cfg("", [*CPU, "INPUT.CROP.SIZE", "(64, 96)"])
    assert cfg.INPUT.CROP.SIZE == [64, 96]
    assert {type(value) for value in cfg.INPUT.CROP.SIZE} == {int}


def test_numbers_may_name_files(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {WEIGHTS: 12}")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).MODEL.WEIGHTS == "12"
    assert setup_cfg("", [*CPU, "OUTPUT_DIR", "0012"]).OUTPUT_DIR == "0012"


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = setup_cfg("", [*CPU, "OUTPUT_DIR", "~/output", "MODEL.WEIGHTS", "~/model.pth"])
    assert f"{tmp_path}/output" == cfg.OUTPUT_DIR
    assert f"{tmp_path}/model.pth" == cfg.MODEL.WEIGHTS


def test_days_and_long_numbers_may_name_folders(tmp_path):
    (tmp_path / "config.yaml").write_text("OUTPUT_DIR: 2026-11-24")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).OUTPUT_DIR == "2026-11-24"
    assert setup_cfg("", [*CPU, "OUTPUT_DIR", "1" * 25]).OUTPUT_DIR == "1" * 25


def test_published_lists_of_sizes_are_computed(tmp_path):
    (tmp_path / "config.yaml").write_text(SIZES)
    cfg = setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert tuple(int(x * 0.1 * 640) for x in range(5, 21)) == cfg.INPUT.MIN_SIZE_TRAIN


def test_key_given_twice_is_reported(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 1}\nSOLVER: {MAX_ITER: 2}")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).SOLVER.MAX_ITER == 2
    assert "config.yaml, line 2: SOLVER is there twice" in caplog.text


def test_merge_keys_are_no_repetition(tmp_path, caplog):
    text = "SOLVER: {<<: {MAX_ITER: 1, BASE_LR: 1e-3}, MAX_ITER: 2}"
    (tmp_path / "config.yaml").write_text(text)
    cfg = setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (2, 1e-3)
    assert "twice" not in caplog.text


# What starting to train or to evaluate refuses, from KEY VALUE pairs in a folder.
STARTS = {
    "weights that are not there": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "{folder}/nowhere.pth"),
        "MODEL.WEIGHTS: there is no file {folder}/nowhere.pth",
    ),
    "weights that are a folder": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "{folder}"),
        "MODEL.WEIGHTS: there is no file {folder}",
    ),
    "unknown data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", required=True),
        ("DATASETS.TRAIN", "('coco_2017_train_panoptik',)"),
        "DATASETS.TRAIN: there is no data set coco_2017_train_panoptik; nearest are "
        "coco_2017_train_panoptic",
    ),
    "a number as data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TEST, "DATASETS.TEST"),
        ("DATASETS.TEST", "(3,)"),
        "DATASETS.TEST: there is no data set 3; nearest are ",
    ),
    "no data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", required=True),
        ("DATASETS.TRAIN", "()"),
        "DATASETS.TRAIN is (): expected one data set or more",
    ),
    "weights that no network leads to": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"),
        "MODEL.WEIGHTS is detectron2://ImageNetPretrained/torchvision/R-50.pkl: cannot be fetched: "
        "<urlopen error no network>: expected a network, or the name of a file that was downloaded "
        "from https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl; "
        'MODEL.WEIGHTS "" starts from random weights',
    ),
    "weights to evaluate that no network leads to": (
        lambda cfg: check_weights(cfg, resume=False, required=True),
        ("MODEL.WEIGHTS", "https://localhost/model.pth"),
        "MODEL.WEIGHTS is https://localhost/model.pth: cannot be fetched: <urlopen error no "
        "network>: expected a network, or the name of a file that was downloaded from "
        "https://localhost/model.pth",
    ),
    "output in a file": (
        check_output_dir,
        ("OUTPUT_DIR", "{folder}/file/output"),
        "OUTPUT_DIR is {folder}/file/output: expected a folder that can be written "
        "(Not a directory",
    ),
    "output that is a file": (
        check_output_dir,
        ("OUTPUT_DIR", "{folder}/file"),
        "OUTPUT_DIR is {folder}/file: expected a folder that can be written (File exists",
    ),
    "output on the web": (
        check_output_dir,
        ("OUTPUT_DIR", "http://localhost/output"),
        "OUTPUT_DIR is http://localhost/output: expected a folder of this machine",
    ),
    "output with a zero byte": (
        check_output_dir,
        ("OUTPUT_DIR", "a\0b"),
        "OUTPUT_DIR is a\\x00b: expected a folder that can be written (embedded null byte",
    ),
    "output that is read-only": (
        check_output_dir,
        ("OUTPUT_DIR", "/proc/self"),
        "OUTPUT_DIR is /proc/self: expected a folder that can be written (",
    ),
}


@pytest.mark.parametrize("fault", STARTS)
def test_start_is_refused(fault, tmp_path):
    start, pairs, words = STARTS[fault]
    (tmp_path / "file").touch()
    cfg = setup_cfg("", [*CPU, *(text.format(folder=tmp_path) for text in pairs)])
    with pytest.raises(ConfigError) as told:
        start(cfg)
    assert str(told.value).startswith(words.format(folder=tmp_path)), told.value


def test_output_folder_is_made(tmp_path):
    cfg = setup_cfg("", [*CPU, "OUTPUT_DIR", str(tmp_path / "new" / "output")])
    check_output_dir(cfg)
    assert list((tmp_path / "new" / "output").iterdir()) == []


# What follows --config-file, and how train_net.py ends.
TRAININGS = {
    "misspelt key": (
        ["{folder}/config.yaml", "SOLVER.MAX_ITR", "3"],
        "there is no config key SOLVER.MAX_ITR; nearest are SOLVER.MAX_ITER",
    ),
    "no configuration": ([""], "--config-file is missing: expected a file, or a name such as "),
    "no data set": (
        ["{folder}/config.yaml"],
        "DATASETS.TRAIN is (): expected one data set or more",
    ),
    "weights that no network leads to": (
        ["coco/panoptic/proscale_r50_333", *CPU],
        "MODEL.WEIGHTS is detectron2://ImageNetPretrained/torchvision/R-50.pkl: cannot be fetched",
    ),
}


@pytest.mark.parametrize("fault", TRAININGS)
def test_train_net_ends_with_one_line(fault, tmp_path, monkeypatch, capsys):
    arguments, message = TRAININGS[fault]
    (tmp_path / "config.yaml").write_text("MODEL: {DEVICE: cpu}")
    arguments = [text.format(folder=tmp_path) for text in arguments]
    monkeypatch.setattr(sys, "argv", [str(TRAIN_NET), "--config-file", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TRAIN_NET), run_name="__main__")
    assert str(stop.value.code).startswith(f"train_net.py: {message}")
    assert not capsys.readouterr().out


def test_commands_end_with_one_line():
    with pytest.raises(SystemExit) as stop:
        main(["check-dataset", "coco_2017_vall"])
    assert str(stop.value.code).startswith(
        "proscale: there is no data set coco_2017_vall; nearest are coco_2017_val"
    )
