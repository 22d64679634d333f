"""``proscale`` itself: cheap until a command runs, and every name is a command."""

import subprocess
import sys
from importlib import import_module
from threading import Thread

import pytest

from proscale.errors import DataError
from proscale_cli import COMMANDS, errors_in_one_sentence, main, module_of


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predcit"], ["completion"]])
def test_neither_torch_nor_the_package_is_imported_for_help(arguments):
    code = (
        "import sys, proscale_cli\n"
        f"try: proscale_cli.main({arguments!r})\n"
        "finally: print(sorted({'torch', 'numpy', 'proscale', 'detectron2'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_describes_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    description = import_module(module_of(name)).__doc__
    assert (
        description.split("\n\n", 1)[1].split()[:6]
        == capsys.readouterr().out.split("\n\n")[1].split()[:6]
    )


@pytest.mark.parametrize(
    ("word", "hint"), [("predcit", "did you mean predict?"), ("xyz", "expected setup, models, ")]
)
def test_unknown_commands_name_the_nearest(word, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main([word])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"proscale: error: there is no command '{word}': {hint}")


def test_a_missing_dependency_is_one_sentence():
    program = (
        "import importlib.util, proscale_cli\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'detectron2' else find(name)\n"
        "proscale_cli.main(['predict', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("proscale: proscale cannot be imported: detectron2 is not inst")
    assert done.stderr.count("\n") == 1


def test_errors_of_users_are_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise DataError("a.png is 3 bytes: expected a PNG file")

    monkeypatch.setattr("proscale.cli.prepare.prepare", fail)
    with pytest.raises(SystemExit, match=r"^proscale: .*a\.png is 3 bytes: expected a PNG file$"):
        main(["prepare", "coco"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "a.png"), "a.png: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(18, "Cross-device link", "a", None, "b"), "a: b: Cross-device link"),
    ],
)
def test_the_systems_errors_are_one_sentence(error, message):
    with (
        pytest.raises(SystemExit, match=rf"^proscale: {message}$"),
        errors_in_one_sentence("proscale"),
    ):
        raise error


def test_errors_of_threads_are_one_sentence(capfd):
    def fail():
        raise OSError(28, "No space left on device")

    with errors_in_one_sentence("proscale"):
        thread = Thread(target=fail)
        thread.start()
        thread.join()
    assert capfd.readouterr().err == "proscale: No space left on device\n"


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "coco", "--fast"])
    assert "unrecognized arguments: --fast" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["x", "0x64", "-1x64", "64", "9" * 5000 + "x64", "100000x100000"])
def test_sizes_beyond_sense_are_refused(size, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["flops", "--config-file", "demo/proscale_r18_111", f"--size={size}"])
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert ": expected " in last
    assert len(last) < 150


@pytest.mark.parametrize(
    ("words", "expected"), [("proscale pre", "predict prepare"), ("proscale predict pre", "")]
)
def test_bash_completes_commands_and_leaves_files_to_itself(words, expected, capsys):
    main(["completion"])
    script = capsys.readouterr().out
    number = len(words.split()) - 1
    state = f'COMP_WORDS=({words}); COMP_CWORD={number}; _proscale; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", script + state], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")
