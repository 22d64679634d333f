"""What the project's HTML pages share: colours and type, and the viewer that enlarges images.

A page is one file that works without a server and a network, so the pieces become part of it. A
template has ``$head_html``, ``$page_css``, ``$viewer_css``, ``$viewer_html`` and ``$viewer_js``
where they belong.
"""

import json
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

_PIECES = ("head.html", "page.css", "viewer.css", "viewer.html", "viewer.js")


def shared_pieces() -> dict[str, str]:
    """The pieces by their names in templates."""
    folder = files("proscale.utils.web")
    return {name.replace(".", "_"): folder.joinpath(name).read_text("utf-8") for name in _PIECES}


def now() -> str:
    """Date and time of this machine, for people."""
    return datetime.now(timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")


def script_data(content: Any) -> str:
    """JSON for a ``<script type="application/json">``, whatever texts are in it."""
    # Within a script only "<" could end it.
    return json.dumps(content).replace("<", "\\u003c")
