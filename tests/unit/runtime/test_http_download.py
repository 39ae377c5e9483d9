"""Downloads from a server that truncates, stalls, fails, ignores ranges and changes its files."""

import contextlib
import hashlib
import json
import threading
import time

import numpy as np
import pytest
from dataset_cases import answer, serving

from coordexp.runtime import estimates, http_download
from coordexp.runtime.errors import DownloadError, SpaceError
from coordexp.runtime.http_download import (
    SECRET_URLS,
    Policy,
    fetch,
    hide_urls,
    restore_urls,
    secret_urls,
    shown_url,
    url_key,
)

BODY = np.random.default_rng(0).bytes(3_000_000)
QUICK = Policy(attempts=4, timeout=0.5, first_wait=0.01, longest_wait=0.05)


@pytest.fixture
def server():
    with serving() as running:
        running.content["/file.bin"] = BODY
        running.etag["/file.bin"] = '"one"'
        yield running


def get(server, target, **options):
    return fetch(f"{server.url}/file.bin", target, policy=QUICK, **options)


def test_a_file_arrives_whole_with_its_hash(server, tmp_path, capsys):
    expected = hashlib.sha256(BODY).hexdigest()
    assert get(server, tmp_path / "a" / "file.bin", size=len(BODY), sha256=expected) == expected
    assert (tmp_path / "a" / "file.bin").read_bytes() == BODY
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file.bin"]
    assert "3 of 3 MB (100%)" in capsys.readouterr().err


def test_a_cut_connection_is_continued_by_range(server, tmp_path):
    cut = lambda size: lambda handler, body: answer(handler, body, send=size, etag='"one"')  # noqa: E731
    server.script["/file.bin"] = [cut(1_000_000), cut(700_000)]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.ranges_of("/file.bin") == [None, "bytes=1000000-", "bytes=1700000-"]


def test_a_killed_download_goes_on_in_the_next_run(server, tmp_path):
    server.script["/file.bin"] = [lambda h, b: answer(h, b, send=1_200_000, etag='"one"')]
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path / "file.bin", sleep=lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not (tmp_path / "file.bin").exists()
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.ranges_of("/file.bin") == [None, "bytes=1200000-"]


def test_a_stalled_connection_is_given_up_and_continued(server, tmp_path):
    release = threading.Event()

    def stall(handler, body):
        answer(handler, body, send=900_000, etag='"one"')
        release.wait(5)

    server.script["/file.bin"] = [stall]
    start = time.monotonic()
    get(server, tmp_path / "file.bin")
    release.set()
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert 0.4 < time.monotonic() - start < 4
    assert server.ranges_of("/file.bin")[1] == "bytes=900000-"


def test_busy_servers_are_asked_again_when_they_say(server, tmp_path):
    def busy(handler, body):
        handler.send_response(503)
        handler.send_header("Retry-After", "2")
        handler.end_headers()

    waits = []
    server.script["/file.bin"] = [busy, busy]
    get(server, tmp_path / "file.bin", sleep=waits.append)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert waits == [QUICK.longest_wait] * 2  # the server asks for 2 s, the policy allows less


def test_the_wait_grows_and_the_tries_end(server, tmp_path):
    waits = []
    server.script["/file.bin"] = [lambda h, b: h.send_error(502)] * 9
    with pytest.raises(DownloadError, match=r"gave up after 4 tries.*502"):
        get(server, tmp_path / "file.bin", sleep=waits.append)
    assert len(waits) == 3
    assert waits[2] > waits[0]


def test_progress_starts_the_count_of_tries_afresh(server, tmp_path):
    steps = [lambda h, b: answer(h, b, send=300_000, etag='"one"')] * 8  # more cuts than attempts
    server.script["/file.bin"] = steps
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(server, tmp_path, status):
    server.script["/file.bin"] = [lambda h, b: h.send_error(status)]
    with pytest.raises(DownloadError, match=str(status)):
        get(server, tmp_path / "file.bin")
    assert len(server.requests) == 1


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.script["/file.bin"] = [lambda h, b: answer(h, b, send=1_000_000, ranges=False, etag='"one"')]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


@pytest.mark.parametrize("validated", [True, False])
def test_a_file_that_changes_under_way_is_never_mixed(server, tmp_path, validated):
    """With an ETag the server is asked conditionally; without one the new length gives it away."""
    tag = '"one"' if validated else ""
    new = np.random.default_rng(1).bytes(len(BODY) if validated else len(BODY) + 999)

    def cut_and_change(handler, body):
        answer(handler, body, send=1_000_000, etag=tag)
        server.content["/file.bin"] = new
        server.etag["/file.bin"] = '"two"' if validated else ""

    server.etag["/file.bin"] = tag
    server.script["/file.bin"] = [cut_and_change]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == new


def test_a_server_that_ignores_the_condition_is_noticed(server, tmp_path):
    new = np.random.default_rng(2).bytes(len(BODY))

    def careless(handler, body):
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(new) - 1}/{len(new)}")
        handler.send_header("ETag", '"two"')
        handler.end_headers()
        handler.wfile.write(new[start:])

    def cut_and_change(handler, body):
        answer(handler, body, send=1_000_000, etag='"one"')
        server.content["/file.bin"], server.etag["/file.bin"] = new, '"two"'

    server.script["/file.bin"] = [cut_and_change, careless]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == new


def test_a_file_that_shrank_is_fetched_anew(server, tmp_path):
    def cut_and_shrink(handler, body):
        answer(handler, body, send=2_000_000)
        server.content["/file.bin"] = BODY[:1_500_000]

    server.etag["/file.bin"] = ""
    server.script["/file.bin"] = [cut_and_shrink]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY[:1_500_000]


def test_wrong_content_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=r"sha256.*expected"):
        get(server, tmp_path / "file.bin", sha256="0" * 64)
    with pytest.raises(DownloadError, match=r"size.*expected 7, found 'more than 7'"):
        get(server, tmp_path / "file.bin", size=7)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_a_clear_error(tmp_path):
    with serving() as gone:
        url = f"{gone.url}/file.bin"
    with pytest.raises(DownloadError, match=r"gave up after 2 tries.*refused"):
        fetch(url, tmp_path / "file.bin", policy=Policy(attempts=2, first_wait=0.01))


URLS = ["file:///etc/passwd", "ftp://a/b", "", "a/b", "http://", "http://[bad/x", "http://a:99999999/x", "http://a b/x"]


URLS += [
    "http://a..b/x",
    "http://.a/x",
    f"http://{'a' * 64}/x",
    f"http://{'%61' * 64}/x",
    "http://%e9/x",
    "http://a:0/x",
]


@pytest.mark.parametrize("url", [*URLS, "http://a/b\r\nX: y", "http://a:b/x", "http://a/é"])
def test_other_than_web_addresses_are_refused_without_a_try(tmp_path, url):
    with pytest.raises(DownloadError, match="invalid URL"):
        fetch(url, tmp_path / "file.bin", sleep=lambda _: pytest.fail("tried again"))


@pytest.mark.parametrize("location", ["http://[::1/", "http://a..b/", "http://\xe9/"])
def test_a_redirection_to_an_invalid_url_is_a_clear_error(server, tmp_path, location):
    def redirect(handler, body):
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.end_headers()

    server.script["/file.bin"] = [redirect]
    with pytest.raises(DownloadError, match="redirects to an invalid URL"):
        get(server, tmp_path / "file.bin")


@pytest.mark.parametrize("header", ["Content-Length", "Content-Range", "Retry-After"])
@pytest.mark.parametrize("value", ["\xb2", "9" * 5000, "-5", ""])
def test_invalid_headers_of_a_server_are_ignored(server, tmp_path, header, value):
    def invalid(handler, body):
        status = {"Content-Length": 200, "Content-Range": 206, "Retry-After": 503}[header]
        handler.send_response(status)
        handler.send_header(header, f"bytes {value}-9/9" if header == "Content-Range" else value)
        handler.end_headers()
        handler.wfile.write(body)

    server.script["/file.bin"] = [invalid]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


DAMAGED = [b"", b"{", b"5", b'"x"', b"\xff", b'{"url": "URL", "validator": "a\\nb"}']
DAMAGED += [b'{"url": "URL", "validator": "\\u20ac"}', b'{"url": "URL", "validator": 5}']


@pytest.mark.parametrize("state", DAMAGED)
def test_a_download_with_a_damaged_record_starts_over(server, tmp_path, state):
    (tmp_path / "file.bin.part").write_bytes(BODY[:100])
    (tmp_path / "file.bin.part.json").write_bytes(state.replace(b"URL", f"{server.url}/file.bin".encode()))
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY and server.ranges_of("/file.bin") == [None]


def test_secrets_of_a_url_are_not_shown():
    url = "https://user:password@host/a.zip?token=secret&id=7"
    assert shown_url(url) == "https://host/a.zip?token=...&id=..."
    assert "secret" not in url_key(url)
    assert url_key(url) != url_key(url.replace("id=7", "id=8"))
    assert url_key("https://host/a.zip") == "https://host/a.zip"


def test_a_body_without_length_stops_before_the_disk_is_full(server, tmp_path, monkeypatch):
    def endless(handler, body):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(1 << 16))

    server.script["/file.bin"] = [endless]
    monkeypatch.setattr(http_download, "MARGIN", 1 << 20)
    free = lambda folder: (5 << 20) - sum(p.stat().st_size for p in tmp_path.iterdir())  # noqa: E731
    monkeypatch.setattr(estimates, "free_bytes", free)
    with pytest.raises(SpaceError, match="not enough disk space for download"):
        get(server, tmp_path / "file.bin")
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 5 << 20


def test_a_body_longer_than_its_size_is_not_read_to_the_end(server, tmp_path):
    def endless(handler, body):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(1 << 16))

    server.script["/file.bin"] = [endless]
    with pytest.raises(DownloadError, match="wrong content"):
        get(server, tmp_path / "file.bin", size=2_000_000)
    assert list(tmp_path.iterdir()) == []


def test_hidden_urls_are_restored_from_the_environment(monkeypatch):
    entry = {
        "downloads": {"a": {"url": "https://host/a?token=secret"}, "b": {"url": "https://host/b"}},
        "root": "/c?d=e",
    }
    hidden = hide_urls(entry)
    assert "secret" not in str(hidden) and hidden["downloads"]["b"] == entry["downloads"]["b"]
    monkeypatch.setenv(SECRET_URLS, json.dumps(secret_urls(entry)))
    assert restore_urls(hidden) == entry
