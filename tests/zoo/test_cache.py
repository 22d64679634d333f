"""Files are fetched once, resumed where they broke off, and checked; from a local server."""

import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from proscale.errors import CheckpointError, ConfigError
from proscale.zoo.cache import fetch

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Notes the requested ranges; ``breaks_after`` bytes the connection ends, once."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested, self.breaks_after, self.takes_ranges = [], None, True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/model.pkl"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requested.append(wanted)
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and server.takes_ranges else 0
        if "missing" in self.path:
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end, server.breaks_after = server.breaks_after, None
        self.wfile.write(CONTENT[start:end])


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("PROSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_is_fetched_once(server):
    path = fetch(server.address, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert fetch(server.address) == path
    assert server.requested == [None]


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_goes_on_where_it_broke_off(server, takes_ranges):
    server.breaks_after, server.takes_ranges = 3000, takes_ranges
    with pytest.raises(ConfigError, match="3000 of 10240 bytes came"):
        fetch(server.address)
    assert fetch(server.address).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=3000-"]


def test_a_longer_rest_of_another_file_is_dropped(server, tmp_path):
    server.breaks_after = 3000
    with pytest.raises(ConfigError):
        fetch(server.address)
    (unfinished,) = (tmp_path / "cache").rglob("*.unfinished")
    unfinished.write_bytes(bytes(20_000))
    assert fetch(server.address).read_bytes() == CONTENT


def test_other_content_is_refused(server, tmp_path):
    with pytest.raises(CheckpointError, match=r"SHA-256 is [0-9a-f]{64}: expected 00"):
        fetch(server.address, sha256="0" * 64)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_cannot_be_fetched_says_which_file_to_put_where(server, tmp_path):
    address = server.address.replace("model.pkl", "missing.pkl")
    place = tmp_path / "cache" / f"127.0.0.1:{server.server_port}" / "models" / "missing.pkl"
    with pytest.raises(ConfigError, match=f"{address}: cannot be fetched: .*that file as {place}"):
        fetch(address)
    place.write_bytes(b"put there")
    assert fetch(address).read_bytes() == b"put there"
