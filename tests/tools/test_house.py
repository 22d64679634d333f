"""Rooms, lines, comments and classes of a small package."""


def test_rooms_comments_and_doubled_classes(load_tool, tmp_path, monkeypatch, capsys):
    tool = load_tool("house")
    monkeypatch.setattr(tool, "PACKAGE", tmp_path)
    for room in ("one", "two"):
        (tmp_path / room).mkdir()
    (tmp_path / "__init__.py").write_text('"""Nothing."""\n')
    (tmp_path / "one" / "a.py").write_text("# Why.\nclass Same:\n    x = 1  # on a line of code\n")
    text = 'class Same:\n    """# no comment"""\n\n\nclass _Own:\n    pass\n'
    (tmp_path / "two" / "b.py").write_text(text)
    (tmp_path / "two" / "c.py").write_text("class _Own:\n    pass\n\n\n# End.\n")
    tool.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:5] == ["(top)", "1", "files", "1", "lines"]
    assert rows[1][:6] == ["one", "1", "files", "3", "lines", "33.3"]
    assert rows[2][:6] == ["two", "2", "files", "11", "lines", "9.1"]
    assert rows[3][:5] == ["all", "4", "files", "15", "lines"]
    assert rows[4] == ["public", "classes", "defined", "twice:", "Same"]
