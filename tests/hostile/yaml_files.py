"""Configuration files: those that run code, reach elsewhere, swell, or are no configuration."""

import os
from collections.abc import Callable
from pathlib import Path

from proscale.config import setup_cfg
from proscale.config.setup import MAX_BYTES
from tests.hostile.cases import Case, Place, command

EVAL = "!!python/object/apply:eval"
PUBLISHED = "[int(x * 0.1 * 640) for x in range(5, 21)]"
SIZES = f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["{PUBLISHED}"]}}'
MANY = "9" * 5000
HEX = "0x" + "F" * 5000
CPU = ("MODEL.DEVICE", "cpu")


def read(place: Place) -> object:
    return setup_cfg("config.yaml", CPU)


def _case(
    name: str, text: str | bytes, *words: str, is_right: Callable | None = None, is_light=True
) -> Case:
    """A file of the case's folder; ``is_right`` accepts its configuration."""

    def run(place: Place) -> object:
        content = text.encode() if isinstance(text, str) else text
        names = {"CANARY": place.canary, "OUTSIDE": place.outside}
        for word, path in names.items():
            content = content.replace(b"{%s}" % word.encode(), os.fsencode(path))
        place.write("config.yaml", content)
        place.write("other.yaml", "_BASE_: config.yaml")
        place.write("broken.yaml", "A: ]")
        place.write("sound.yaml", "SOLVER: {MAX_ITER: 7}")
        place.write("empty.yaml", "")
        for i in range(30):
            bases = ", ".join([f"double{i + 1}.yaml"] * 2)
            place.write(f"double{i}.yaml", f"_BASE_: [{bases}]")
        place.write("double30.yaml", "")
        return read(place)

    right = None if is_right is None else lambda place, cfg: is_right(cfg)
    return Case(name, run, words, is_right is None, right, is_light)


def _laughs(opening: str, closing: str, item: str) -> str:
    lines = [f"a0: &a0 {opening}{item.format(k=0, value=1)}{closing}"]
    for i in range(1, 9):
        items = ", ".join(item.format(k=k, value=f"*a{i - 1}") for k in range(9))
        lines.append(f"a{i}: &a{i} {opening}{items}{closing}")
    return "\n".join(lines)


def _eval(expression: str) -> str:
    return f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["{expression}"]}}'


LAUGHS = _laughs("{", "}", "k{k}: {value}")

# Tags that make an object or call a function, as the YAML of a stranger may have them.
_TAGS = {
    "apply:os.system": '!!python/object/apply:os.system ["touch {CANARY}"]',
    "apply:subprocess.Popen": '!!python/object/apply:subprocess.Popen [["touch", "{CANARY}"]]',
    "apply:builtins.exec": "!!python/object/apply:builtins.exec [\"open('{CANARY}', 'w')\"]",
    "apply:builtins.eval": "!!python/object/apply:builtins.eval [\"open('{CANARY}', 'w')\"]",
    "apply:eval": f"{EVAL} [\"open('{{CANARY}}', 'w')\"]",
    "apply:eval of an import": f"{EVAL} [\"__import__('os').system('touch {{CANARY}}')\"]",
    "apply with keywords": "!!python/object/apply:open {args: ['{CANARY}'], kwds: {mode: w}}",
    "new": "!!python/object/new:os.system ['touch {CANARY}']",
    "new with state": (
        "!!python/object/new:type {args: [X, !!python/tuple [], {}], "
        "state: {extend: !!python/name:exec }}"
    ),
    "object": "!!python/object:argparse.Namespace {a: 1}",
    "name": "!!python/name:os.system",
    "name with a space": "!!python/name:os.system ''",
    "module": "!!python/module:os",
    "tuple of a call": "!!python/tuple [!!python/object/apply:os.system ['touch {CANARY}']]",
    "full tag": '!<tag:yaml.org,2002:python/object/apply:os.system> ["touch {CANARY}"]',
    "escaped tag": '!!python/object/apply:os%2Esystem ["touch {CANARY}"]',
    "own prefix": (
        '%TAG !x! tag:yaml.org,2002:python/\n---\nMODEL: !x!object/apply:os.system ["touch"]'
    ),
    "bytes": "!!python/bytes ''",
    "complex": "!!python/complex 1j",
    "long": "!!python/long 1",
}

_EVALS = {
    "1.1.1": "[int(x * 1.1.1 * 640) for x in range(5, 21)]",
    ".": "[int(x * . * 640) for x in range(5, 21)]",
    "5000 digits": f"[int(x * 0.1 * {'9' * 5000}) for x in range(5, 21)]",
    "5000 digits of range": f"[int(x * 0.1 * 640) for x in range(5, {'9' * 5000})]",
    "a factor of 400 digits": f"[int(x * {'9' * 400} * 640) for x in range(5, 21)]",
    "a float that overflows": f"[int(x * {'9' * 300}.0 * {'9' * 300}) for x in range(5, 21)]",
    "other code behind": PUBLISHED + " + [open('{CANARY}', 'w')]",
    "other code inside": "[int(x * 0.1 * 640) for x in range(5, open('{CANARY}', 'w'))]",
}

# Name: text of config.yaml, and words that are told.
_FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
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
    "sizes of an empty range": (SIZES.replace("21", "5"), ("INPUT.MIN_SIZE_TRAIN is ()",)),
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
    "nothing as key": (
        "SOLVER: {null: 2}",
        (
            "config.yaml, line 1",
            "is no name of a key",
        ),
    ),
    "truth as key": (
        "SOLVER: {yes: 2}",
        (
            "config.yaml, line 1",
            "is no name of a key",
        ),
    ),
    "a date as key": (
        "2001-01-01: 2",
        (
            "config.yaml, line 1",
            "is no name of a key",
        ),
    ),
    "a list as key": (
        "SOLVER: {? [a, b] : 2}",
        (
            "config.yaml",
            "key",
        ),
    ),
    "a mapping as key": (
        "? {a: b}\n: 2",
        (
            "config.yaml",
            "key",
        ),
    ),
    "a key of half a megabyte": ("A" * 2**19 + ": 1", ("config.yaml",)),
    "a value of half a megabyte": (f"SOLVER: {{MAX_ITER: '{'A' * 2**19}'}}", ("SOLVER.MAX_ITER",)),
    "a key with a newline": (
        '"SOLVER\\nMAX_ITER": 1',
        (
            "config.yaml",
            "SOLVER",
        ),
    ),
    "a key with a zero byte": (
        '"SOLVER\\0": 1',
        (
            "config.yaml",
            "SOLVER",
        ),
    ),
    "a key with an escape sequence": (
        '"\\e[31mSOLVER": 1',
        (
            "config.yaml",
            "SOLVER",
        ),
    ),
    "a surrogate": ('"\\ud800": 1', ("config.yaml",)),
    "blocks nested absurdly": ("{A: " * 2000, ("config.yaml: it is nested too deeply",)),
    "deep by indentation": ("\n".join(" " * i + "A:" for i in range(1500)), ("config.yaml",)),
    "aliases that multiply, lists": (_laughs("[", "]", "{value}"), ("its aliases stand for more",)),
    "merges that multiply": (
        "a0: &a0 {x: 1}\n"
        + "\n".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 20}]}}" for i in range(1, 9)),
        ("config.yaml",),
    ),
    "a list of itself": ("A: &a [*a]", ("config.yaml",)),
    "a merge of itself": ("A: &a {<<: *a}", ("config.yaml",)),
    "a merge of a number": ("SOLVER: {<<: 3}", ("config.yaml",)),
    "an alias of nothing": ("SOLVER: *a", ("config.yaml, line 1",)),
    "two documents": ("SOLVER: {}\n---\nMODEL: {}", ("config.yaml",)),
    "YAML of version 9": ("%YAML 9.9\n---\nSOLVER: {}", ("config.yaml",)),
    "an unclosed quote": ("SOLVER: 'a", ("config.yaml, line ",)),
    "an unknown escape": ('SOLVER: "\\q"', ("config.yaml, line ",)),
    "not UTF-8": (b"SOLVER: \xff\xfe\x80", ("config.yaml",)),
    "half of UTF-16": (b"\xff\xfeS\0O", ("config.yaml",)),
    "a zip file": (b"PK\x03\x04" + bytes(range(256)), ("config.yaml",)),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch {CANARY}'\ntR.", ("config.yaml",)),
    "a set": ("SOLVER: !!set {A, B}", ("config.yaml",)),
    "bytes that are none": ("SOLVER: {MAX_ITER: !!binary é}", ("config.yaml",)),
    "a number that is none": ("SOLVER: {MAX_ITER: !!int abc}", ("config.yaml",)),
    "a float that is none": ("SOLVER: {BASE_LR: !!float abc}", ("config.yaml",)),
    "a date": ("SOLVER: {MAX_ITER: 2001-02-03}", ("SOLVER.MAX_ITER",)),
    "_BASE_ of numbers": ("_BASE_: [3]", ("config.yaml: _BASE_ is",)),
    "_BASE_ that is empty": (
        "_BASE_: ''",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ of 5000 letters": (
        f"_BASE_: {'a' * 5000}.yaml",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ that is a folder": (
        "_BASE_: .",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ that is a device": ("_BASE_: /dev/zero", ("/dev/zero",)),
    "_BASE_ on the web, https": (
        "_BASE_: https://127.0.0.1:9/a.yaml",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ by ftp": (
        "_BASE_: ftp://127.0.0.1:9/a.yaml",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ on S3": (
        "_BASE_: s3://bucket/a.yaml",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ by file://": (
        "_BASE_: file://{OUTSIDE}/secret.yaml",
        (
            "config.yaml",
            "_BASE_",
        ),
    ),
    "_BASE_ among several on the web": (
        "_BASE_: [sound.yaml, 'http://127.0.0.1:9/a.yaml']",
        (*("config.yaml", "_BASE_"),),
    ),
    "_BASE_ that is a secret text": ("_BASE_: {OUTSIDE}/secret.txt", ("secret.txt",)),
    "_BASE_ that is secret YAML": ("_BASE_: {OUTSIDE}/secret.yaml", ("secret.yaml",)),
    "_BASE_ that is a picture": ("_BASE_: {OUTSIDE}/secret.png", ("secret.png",)),
    "a version that is text": ("VERSION: [two]", ("config.yaml: VERSION is",)),
    "infinity": ("SOLVER: {BASE_LR: .inf}", ("SOLVER.BASE_LR is inf",)),
    "minus infinity": ("SOLVER: {BASE_LR: -.inf}", ("SOLVER.BASE_LR is -inf",)),
    "an integer of 23 digits": (f"SOLVER: {{MAX_ITER: {'9' * 23}}}", ("SOLVER.MAX_ITER",)),
    "a sexagesimal of 5000 digits": (
        f"SOLVER: {{MAX_ITER: 1{':59' * 3000}}}",
        ("SOLVER.MAX_ITER",),
    ),
    "a float of 5000 digits": (f"SOLVER: {{BASE_LR: {'9' * 5000}.0}}", ("SOLVER.BASE_LR is inf",)),
}

_ACCEPTED = {
    "an empty file": ("", lambda cfg: cfg.SOLVER.MAX_ITER == 40000),
    "a comment": ("# nothing", lambda cfg: cfg.SOLVER.MAX_ITER == 40000),
    "a byte order mark": (
        b"\xef\xbb\xbfSOLVER: {MAX_ITER: 7}",
        lambda cfg: cfg.SOLVER.MAX_ITER == 7,
    ),
    "lines of Windows": ("SOLVER:\r\n  MAX_ITER: 7\r\n", lambda cfg: cfg.SOLVER.MAX_ITER == 7),
    "a base": ("_BASE_: sound.yaml", lambda cfg: cfg.SOLVER.MAX_ITER == 7),
    "the published list of sizes": (
        _eval(PUBLISHED),
        lambda cfg: tuple(64 * x for x in range(5, 21)) == cfg.INPUT.MIN_SIZE_TRAIN,
    ),
    "merge keys": (
        "SOLVER: {<<: {MAX_ITER: 1, BASE_LR: 1e-3}, MAX_ITER: 7}",
        lambda cfg: (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 1e-3),
    ),
    "trust in its own weights": (
        "MODEL: {TRUST_WEIGHTS: True}",
        lambda cfg: not cfg.MODEL.TRUST_WEIGHTS,
    ),
}


def _not_a_file(make: Callable[[Path], object]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        make(place / "config.yaml")
        return read(place)

    return run


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**33)


CASES = [
    *(
        _case(f"tag {name}", f"MODEL: {tag}" if "%TAG" not in tag else tag, "config.yaml, line ")
        for name, tag in _TAGS.items()
    ),
    *(_case(f"eval: {name}", _eval(text), "config.yaml") for name, text in _EVALS.items()),
    *(_case(name, text, *words) for name, (text, words) in _FILES.items()),
    *(_case(name, text, is_right=right) for name, (text, right) in _ACCEPTED.items()),
    Case("a pipe", _not_a_file(os.mkfifo), ("config.yaml",)),
    Case("a folder", _not_a_file(Path.mkdir), ("config.yaml",)),
    Case("a device", _not_a_file(lambda path: path.symlink_to("/dev/zero")), ("config.yaml",)),
    Case("a link to itself", _not_a_file(lambda path: path.symlink_to(path)), ("config.yaml",)),
    Case("8 GiB of zeros", _not_a_file(_huge), ("config.yaml",), is_light=False),
    Case(
        "a name that is an address",
        command("flops", "--config-file", "http://127.0.0.1:9/a.yaml"),
        ("http://127.0.0.1:9",),
        may_connect=True,
    ),
    Case("a name with a zero byte", command("flops", "--config-file", "a\0.yaml"), ("a",)),
    Case("a name of 300 letters", command("flops", "--config-file", "a" * 300), ("aaa",)),
]
