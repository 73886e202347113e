"""Downloads from a server on this machine that does what servers do."""

import contextlib
import hashlib
import io
import itertools
import os
import sys
import tarfile
import threading
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fairseq_csp import train_lra
from fairseq_csp.data.pixels import load_labels, load_pixels
from fairseq_csp.datasets import DATASETS, RAW_DIRECTORY, DataSet, Download
from fairseq_csp.errors import UserError
from fairseq_csp.recipes.arguments import parse_arguments
from preprocess import download
from preprocess.__main__ import main
from preprocess.sources import require_raw

PAGE = b"<html><body>Please log in to this network</body></html>"


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("a/b.bin")
        member.size = 3_000_000
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size)))
    return file.getvalue()


CONTENT = archive()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each request with the next of its behaviours, the last one again and again.

    A behaviour is a function of the handler; ``requests`` keeps path and headers of each request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.behaviours = [whole()]
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        """Say nothing of a client that has gone; the tests look at what stands on stderr."""

    def ranges(self):
        return [headers["Range"] for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(
            (self.path, dict(self.headers) | {"Range": self.headers["Range"]})
        )
        number = min(len(self.server.requests), len(self.server.behaviours)) - 1
        self.server.behaviours[number](self)
        self.close_connection = True

    def log_message(self, *arguments):
        pass

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


def whole(content=CONTENT, *, stop=None, ranges=True, length=None, **headers):
    """Send a file, from where it is asked for if ``ranges``, and break off after ``stop`` bytes."""

    def behave(handler):
        asked = handler.headers["Range"] if ranges else None
        same = handler.headers["If-Range"] in (None, *headers.values())
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and same else 0
        body, sent = content[start:], dict(headers)
        if start:
            sent["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent["Content_Length"] = len(body) if length is None else length
        handler.send(206 if start else 200, body[:stop], **sent)

    return behave


def status(number, **headers):
    return lambda handler: handler.send(number, b"", Content_Length=0, **headers)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Where files go; two sets of which everything and nothing is known."""
    monkeypatch.setattr(download, "WAIT", 0.001)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    size = {"bytes": len(CONTENT), "sha256": SHA256}
    for name, known in (("known", size), ("unknown", {})):
        release = Download(f"{name}.tar.gz", "http://127.0.0.1:9/none", "3 MB", name, **known)
        entry = DataSet(name, "lra-text", "x", {}, "preprocess.aan", download=release)
        monkeypatch.setitem(DATASETS, name, entry)
    return tmp_path / "raw"


@pytest.fixture
def get(raw, server, capsys):
    """Download, and return what was said."""

    def get(name, *arguments, fails=False, address=None):
        address = address or server.address + f"{name}.tar.gz"
        found = main(["download", name, "--from", address, "--raw-dir", str(raw), *arguments])
        out, err = capsys.readouterr()
        assert found == fails, err
        assert "Traceback" not in err
        if fails:
            assert not (raw / f"{name}.tar.gz").exists()
            return err[err.index("error: ") :]
        assert (raw / f"{name}.tar.gz").read_bytes() == CONTENT
        assert not list(raw.glob(".*"))
        return out + err

    return get


def test_a_file_that_is_known(get, raw, server):
    assert f"known.tar.gz: {len(CONTENT):,} bytes" in get("known")
    assert [path.name for path in raw.iterdir()] == ["known.tar.gz"]
    assert "is there already" in get("known")
    assert len(server.requests) == 1


def test_a_file_of_which_nothing_is_known_is_noted(get, raw, capsys):
    assert f"{SHA256} is noted in {raw / 'SHA256SUMS'}" in get("unknown")
    assert (raw / "SHA256SUMS").read_text() == f"{SHA256}  unknown.tar.gz\n"
    assert "is noted" not in get("unknown")
    (raw / "unknown.tar.gz").write_bytes(CONTENT + b"0")
    assert main(["download", "unknown", "--raw-dir", str(raw)]) == 1
    assert f"that in {raw / 'SHA256SUMS'} is {SHA256}: move it away" in capsys.readouterr().err


def test_a_directory_will_do_as_a_mirror(get, server):
    get("known", address=server.address + "mirror/")
    assert server.requests[0][0] == "/mirror/known.tar.gz"


@pytest.mark.parametrize("name", ["known", "unknown"])
@pytest.mark.parametrize("headers", [{}, {"ETag": '"1"'}, {"Last_Modified": "yesterday"}])
def test_a_server_that_breaks_off_is_asked_for_the_rest(get, server, name, headers):
    stops = (1 << 20, 1 << 19, None)
    server.behaviours = [whole(stop=stop, **headers) for stop in stops]
    get(name)
    assert server.ranges() == [None, "bytes=1048576-", "bytes=1572864-"]


def test_a_server_that_sends_no_parts_sends_all_again(get, server):
    server.behaviours = [whole(stop=1 << 20, ranges=False), whole(ranges=False)]
    get("unknown")
    assert server.ranges() == [None, "bytes=1048576-"]


def test_a_file_that_is_another_meanwhile_is_begun_anew(get, server):
    other = bytes(len(CONTENT))
    server.behaviours = [whole(other, stop=1 << 20, ETag='"1"'), whole(ETag='"2"')]
    get("unknown")


def test_a_part_of_another_size_is_begun_anew(get, server):
    server.behaviours = [whole(CONTENT[:2_000_000], stop=1 << 20), whole(), whole()]
    get("unknown")
    assert server.ranges() == [None, "bytes=1048576-", None]


def test_a_download_that_ended_is_gone_on_with(get, server, raw):
    server.behaviours = [whole(stop=1 << 20, ETag='"1"'), whole(stop=0, ETag='"1"')]
    message = get("unknown", fails=True)
    assert "cannot be downloaded" in message and "1,048,576 bytes are kept" in message
    server.behaviours = [whole(ETag='"1"')]
    before = len(server.requests)
    get("unknown")
    assert server.ranges()[before:] == ["bytes=1048576-"]


def test_another_mirror_goes_on_where_the_sha256_will_tell(get, server):
    server.behaviours = [whole(stop=1 << 20), whole(stop=0)]
    get("known", fails=True)
    server.behaviours = [whole()]
    get("known", address=server.address + "other/known.tar.gz")
    assert server.ranges()[-1] == "bytes=1048576-"


def test_a_redirection_is_followed(get, server):
    server.behaviours = [status(302, Location="/a"), status(301, Location="/b"), whole()]
    get("known")
    assert [path for path, _ in server.requests] == ["/known.tar.gz", "/a", "/b"]


def test_a_redirection_in_a_circle_is_told(get, server):
    server.behaviours = [status(302, Location="/again")]
    assert "leads nowhere" in get("known", fails=True)


@pytest.mark.parametrize("length", [1000, len(CONTENT) + 1000])
def test_a_wrong_length_is_no_matter_where_the_size_is_known(get, server, length):
    server.behaviours = [whole(length=length), whole()]
    get("known")


def test_a_length_that_is_never_reached_is_told(get, server):
    server.behaviours = [whole(length=len(CONTENT) + 1000)]
    assert "cannot be downloaded" in get("unknown", fails=True)


def test_more_than_the_published_file_is_not_kept(get, server, raw):
    server.behaviours = [whole(CONTENT + b"0" * 1000)]
    assert f"sends more than the {len(CONTENT):,} bytes" in get("known", fails=True)
    server.behaviours = [whole()]
    get("known")


def test_a_server_without_end_is_stopped(get, server):
    def endless(handler):
        handler.send(200, b"")
        with contextlib.suppress(ConnectionError):
            for _ in itertools.repeat(None):
                handler.wfile.write(bytes(1 << 16))

    server.behaviours = [endless]
    assert "sends more than" in get("known", fails=True)


def test_another_file_is_refused_and_not_kept(get, server, raw):
    server.behaviours = [whole(bytes(len(CONTENT)))]
    message = get("known", fails=True)
    assert f"the published one is {SHA256}: name another address" in message
    assert not list(raw.iterdir())
    server.behaviours = [whole(CONTENT[:-1])]
    assert "bytes" in get("known", fails=True)


def test_what_is_no_archive_is_refused(get, server, raw):
    server.behaviours = [whole(b"not found")]
    assert "is no archive that can be read" in get("unknown", fails=True)
    assert not list(raw.iterdir())


@pytest.mark.parametrize("name", ["known", "unknown"])
def test_a_web_page_is_told(get, server, name):
    server.behaviours = [whole(PAGE, Content_Type="text/html; charset=utf-8")]
    assert "is a web page and not" in get(name, fails=True)


def test_an_error_of_the_server_is_told_or_waited_for(get, server):
    server.behaviours = [status(404)]
    assert "the server answers 404" in get("known", fails=True)
    assert len(server.requests) == 1
    server.behaviours = [None, status(503), status(429), whole()]
    get("known")


def test_a_server_that_is_not_there_is_told(get):
    address = "http://127.0.0.1:9/known.tar.gz"
    message = get("known", fails=True, address=address)
    assert f"{address} cannot be downloaded" in message and message.count("\n") == 1


@pytest.mark.parametrize("address", ["ftp://x/y", "/etc/passwd", "file:///etc/passwd", "http://"])
def test_other_addresses_are_told(get, address, raw, capsys):
    if address.endswith("/"):
        address = "http:///"
    assert "not an address that begins with http" in get("known", fails=True, address=address)
    assert not raw.exists()


def test_the_proxy_of_the_environment_is_asked(get, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    get("known", address="http://example.invalid/known.tar.gz")
    assert server.requests[0][0] == "http://example.invalid/known.tar.gz"


def test_two_do_not_download_one_file(get, server, raw, capsys):
    begun, end = threading.Event(), threading.Event()

    def slow(handler):
        begun.set()
        end.wait(60)
        whole()(handler)

    server.behaviours = [slow]
    release = DATASETS["known"].download
    first = threading.Thread(target=download.fetch, args=(release, server.address, raw))
    first.start()
    assert begun.wait(60)
    assert "another process downloads" in get("known", fails=True)
    end.set()
    first.join(60)
    assert (raw / "known.tar.gz").read_bytes() == CONTENT


def test_the_published_data_is_unpacked(server, raw, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    images = {split: f"{number} 2 3 4\n" for number, split in enumerate(("train", "valid", "test"))}
    with zipfile.ZipFile(file, "w") as published:
        for split, line in images.items():
            published.writestr(f"lra/pathfinder/input/{split}.src", line * 3)
            published.writestr(f"lra/pathfinder/label/{split}.label", "1\n0\n1\n")
            published.writestr(f"lra/listops/src-bin/{split}.bin", b"x")
        published.writestr("__MACOSX/lra/listops/src-bin/._train.bin", b"x")
        published.writestr("lra/listops/README", b"x")
    server.behaviours = [whole(file.getvalue())]
    (tmp_path / "lra_data" / "listops").mkdir(parents=True)
    command = ["download", "mega", "--from", server.address, "--raw-dir", str(raw)]
    assert main(command) == 0
    assert server.requests[0][0] == "/lra.zip"
    assert "pathfinder: unpacked to lra_data/pathfinder" in capsys.readouterr().out
    prepared = tmp_path / "lra_data" / "pathfinder"
    assert load_pixels(prepared, "valid").tolist() == [[1, 2, 3, 4]] * 3
    assert load_labels(prepared, "test").tolist() == [1, 0, 1]
    assert sorted(os.listdir(tmp_path / "lra_data")) == ["listops", "pathfinder"]
    assert not list((tmp_path / "lra_data" / "listops").iterdir())
    assert main([*command, "--overwrite"]) == 0
    assert os.listdir(tmp_path / "lra_data" / "listops") == ["src-bin"]


def test_a_preparation_downloads_what_is_missing_when_told(server, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = DATASETS["known"]
    entry = replace(entry, download=replace(entry.download, address=server.address + "x"))
    with pytest.raises(UserError, match=r"known needs the raw file known\.tar\.gz .*--download"):
        require_raw(entry, Namespace(raw=None, download=False))
    path = require_raw(entry, Namespace(raw=None, download=True))
    assert path.read_bytes() == CONTENT and path.parent == RAW_DIRECTORY
    assert require_raw(entry, Namespace(raw=None, download=False)) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "there", "expected"),
    [
        (["dataset_name=imdb-4000", "download=yes"], False, True),
        (["dataset_name=imdb-4000", "download=yes"], True, True),
        (["dataset_name=imdb-4000", "download=no"], False, False),
        (["dataset_name=imdb-4000"], False, False),  # nobody is there to be asked
        (["dataset_name=listops", "download=yes"], False, False),  # generated
    ],
)
def test_the_training_asks_for_a_download(arguments, there, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(train_lra, "ROOT", tmp_path)
    (tmp_path / "lra_data" / "raw").mkdir(parents=True)
    if there:
        (tmp_path / "lra_data" / "raw" / "aclImdb_v1.tar.gz").write_bytes(b"")
    choice = parse_arguments(["model_name=mega", *arguments])
    assert train_lra._download(choice) is expected


@pytest.mark.parametrize(("answer", "expected"), [("y", True), ("n", False), ("", False)])
def test_whoever_sits_at_the_terminal_is_asked(answer, expected, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(train_lra, "ROOT", tmp_path)
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    choice = parse_arguments(["model_name=mega", "dataset_name=imdb-4000"])
    assert train_lra._download(choice) is expected
    assert "Download aclImdb_v1.tar.gz (84 MB) from https://" in sys.stderr.getvalue()


def test_what_every_set_needs_can_be_named(capsys):
    with pytest.raises(SystemExit):
        main(["download", "nothing"])
    message = capsys.readouterr().err
    for name in ("listops", "imdb-4000", "cifar10", "path-x", "mega"):
        assert f"'{name}'" in message or f" {name}" in message


def test_an_interrupted_download_is_kept(get, server, raw, monkeypatch, capsys):
    server.behaviours = [whole(stop=1 << 20), whole(stop=1 << 19), whole()]
    monkeypatch.setattr(time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    address = server.address + "known.tar.gz"
    assert main(["download", "known", "--from", address, "--raw-dir", str(raw)]) == 130
    assert "1,048,576 bytes are kept: the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
