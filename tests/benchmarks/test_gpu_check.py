"""The command's own logic: parts that fail or hang, the page, the goals, and the parts in it."""

import json

import gpu_check as script
import pytest
import torch
from gpu_check import Outcome, Part, list_goals, list_parts, main, run_part

CPU = torch.device("cpu")
PRINTS = "import sys; print('hello'); open(sys.argv[1], 'w').write('{\"value\": 1}')"


def part(code: str, *arguments: str, seconds: int = 60) -> Part:
    return Part("A title", ("-c", code, *arguments), seconds)


@pytest.mark.parametrize(
    ("given", "status", "output"),
    [
        (part(PRINTS, "{json}"), "passed", "hello\n"),
        (part("raise SystemExit('wrong')"), "failed", "wrong\n"),
        (part("import time; print('a', flush=True); time.sleep(60)", seconds=3), "stopped", "a\n"),
    ],
    ids=["passes", "fails", "hangs"],
)
def test_outcome_of_a_part(given, status, output):
    outcome = run_part(given, "cpu", 60)
    assert (outcome.status, outcome.output) == (status, output)
    assert outcome.numbers == ({"value": 1} if status == "passed" else {})


def test_a_part_is_stopped_with_its_processes():
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])"
    outcome = run_part(part(code, seconds=2), "cpu", 60)
    # The child has the pipe: its end is waited for, too.
    assert outcome.status == "stopped" and outcome.seconds < 30


def test_a_failure_hides_no_other_part(monkeypatch, tmp_path, capsys):
    parts = {"first": part("raise SystemExit('wrong')"), "second": part(PRINTS, "{json}")}
    monkeypatch.setattr(script, "list_parts", lambda device, is_small: parts)
    page, numbers = tmp_path / "gpu.md", tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="not passed: first"):
        main(["--device", "cpu", "--page", str(page), "--json", str(numbers)])
    assert "first: failed" in capsys.readouterr().out
    text = page.read_text()
    assert "wrong" in text and "hello" in text and "not measured" in text
    found = json.loads(numbers.read_text())["parts"]
    assert found["second"] == {"status": "passed", "value": 1}


def test_no_part_after_the_time(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "list_parts", lambda device, is_small: {"late": part("1 / 0")})
    monkeypatch.setattr(script.time, "monotonic", iter([0.0, 61.0]).__next__)
    with pytest.raises(SystemExit, match="not passed: late"):
        main(["--device", "cpu", "--minutes", "1", "--page", str(tmp_path / "gpu.md")])
    assert "not run, the time was over" in (tmp_path / "gpu.md").read_text()


def outcome(numbers: dict) -> Outcome:
    return Outcome(part(""), "passed", 1.0, "", numbers)


def test_goals():
    def median(seconds):
        return {"median": seconds}

    backends = {"reference": {"forward": median(6.0)}, "triton": {"forward": median(1.0)}}
    runs = {"none": median(1.5), "bsm_hq": median(1.0), "bsm_fast": median(1.0)}
    rows = list_goals(
        {
            "memory": outcome({"float32": {"operator": 5.0, "copy": 2.0}}),
            "operator": outcome({"backends": backends}),
            "models": outcome({"models": {"proscale_r50_111, bf16": {"images_per_second": 130.0}}}),
            "merging": outcome({"results": [{"runs": runs}]}),
        }
    )
    assert [row[1:] for row in rows] == [
        ["≤ 2", "2.50", "no"],
        ["≥ 5", "6.00", "yes"],
        ["≥ 128", "130.00", "yes"],
        ["≥ 1.4", "1.50", "yes"],
        ["≥ 1.7", "1.50", "no"],
        ["≥ 1.6", "not measured", ""],
    ]


def test_files_of_the_parts_exist():
    for found in list_parts("cuda", False).values():
        files = [word for word in found.command if word.endswith((".py", ".yaml"))]
        assert all((script.ROOT / file).is_file() for file in files)
    assert sum(found.seconds for found in list_parts("cuda", False).values()) <= 15 * 60


def test_losses_of_few_steps(monkeypatch, capsys):
    monkeypatch.setattr(script, "STEPS", 2)
    numbers = script.losses(CPU)
    # Mixed precision has an effect, and a small one.
    assert 0 < numbers["largest_difference"] < script.LOSS_TOLERANCE
    assert capsys.readouterr().out.count("\n") == 4
    monkeypatch.setattr(script, "LOSS_TOLERANCE", 0)
    with pytest.raises(SystemExit, match="losses differ by"):
        script.losses(CPU)


def test_random_numbers_are_the_cpu_generators():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with script.RandomNumbersOfCpu():
        assert torch.equal(torch.rand(3, device="cpu"), expected)
