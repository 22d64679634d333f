"""Measure the installed package: files, lines, comments, and public classes defined twice.

python tools/house.py           # a row for each room
"""

import ast
import io
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "proscale"


def main() -> None:
    """Print the table, and the classes."""
    rooms: dict[str, Counter[str]] = defaultdict(Counter)
    classes: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        inside = path.relative_to(PACKAGE).parts
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = [t for t in tokens if t.type == tokenize.COMMENT]
        own_line = sum(t.line.lstrip().startswith("#") for t in comments)
        counts = {"files": 1, "lines": text.count("\n"), "comments": own_line}
        for room in (inside[0] if len(inside) > 1 else "(top)", "all"):
            rooms[room].update(counts)
        classes.update(
            node.name
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )
    for room, counts in sorted(rooms.items(), key=lambda item: (item[0] == "all", item[0])):
        percent = 100 * counts["comments"] / counts["lines"]
        print(
            f"{room:15}{counts['files']:4} files{counts['lines']:7} lines{percent:5.1f} % comments"
        )
    twice = sorted(name for name, count in classes.items() if count > 1)
    print(f"public classes defined twice: {', '.join(twice) or 'none'}")


if __name__ == "__main__":
    main()
