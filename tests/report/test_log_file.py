"""What is found in Detectron2's log and in the demo's."""

from proscale.report.log_file import read_log

TABLE = """----------  -----------------
Python      3.11.7 (main, May)
PyTorch     {version}
----------  -----------------
PyTorch built with:
  - GCC  13.3
"""


def test_detectron2s_log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        f"[11/21 11:25:04] detectron2 INFO: Environment info:\n{TABLE.format(version='1')}\n"
        "[11/21 11:25:05] detectron2 INFO: Command line arguments: Namespace(resume=False)\n"
        "[11/21 11:26:00] d2.utils.events INFO: \x1b[38;5;1m iter: 19  lr: 1  max_mem: 2048M\n"
        "[11/21 11:26:09] d2.utils.events INFO:  iter: 39  lr: 1  max_mem: 1024M\n"
        f"[11/22 08:00:00] detectron2 INFO: Environment info:\n{TABLE.format(version='2')}\n"
        "[11/22 08:00:01] detectron2 INFO: Command line arguments: Namespace(resume=True)\n"
    )
    facts = read_log(path)
    assert facts.environment == {"Python": "3.11.7 (main, May)", "PyTorch": "2"}
    assert facts.command == "Namespace(resume=True)"
    assert facts.starts == 2
    assert (facts.first, facts.last) == ("11/21 11:25:04", "11/22 08:00:01")
    assert facts.peak_memory == 2048


def test_times_with_a_year(tmp_path):
    (tmp_path / "log.txt").write_text("2026-11-21 12:09:08,123 proscale INFO: hello\nmore\n")
    assert read_log(tmp_path / "log.txt").last == "2026-11-21 12:09:08"


def test_anything_else_is_no_fault(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"\xff\xfe\x00Environment info:\nnothing")
    facts = read_log(tmp_path / "log.txt")
    assert (facts.environment, facts.peak_memory, facts.first) == ({}, None, "")
