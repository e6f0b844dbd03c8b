"""What is fetched from other machines, and above all what is not."""

import contextlib
import http.server
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.fetch import Fetch, is_public
from cascadevl.serving.prepare import Preparer
from tests.serving.conftest import post, running

CHAT = "/v1/chat/completions"


class Site(http.server.BaseHTTPRequestHandler):
    """Answers as the path says, and notes what it was asked."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        with contextlib.suppress(OSError):
            getattr(self, "on_" + self.path.split("/")[1].partition("?")[0])()

    def on_picture(self):
        self.reply(b"pixels")

    def on_redirect(self):
        self.reply(b"", 302, Location=self.path.removeprefix("/redirect/"))

    def on_loop(self):
        self.reply(b"", 307, Location=f"/loop/{len(self.server.asked)}")

    def on_status(self):
        self.reply(b"pixels", 500)

    def on_page(self):
        self.reply(b"<html>", kind="text/html; charset=utf-8")

    def on_zipped(self):
        self.reply(b"\x1f\x8b" + bytes(100), Content_Encoding="gzip")

    def on_huge(self):
        self.reply(b"pixels", length=10**15)

    def on_short(self):
        self.reply(b"pixels", length=500)
        self.close_connection = True

    def on_endless(self):
        self.begin(Transfer_Encoding="chunked")
        while True:
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def on_slow(self):
        self.begin(Connection="close")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.02)

    def on_slowhead(self):
        while True:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: "[:1])
            time.sleep(0.02)

    def begin(self, status=200, kind="image/png", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def reply(self, body, status=200, *, length=None, **more):
        self.begin(status, Content_Length=str(len(body) if length is None else length), **more)
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


class Running(http.server.ThreadingHTTPServer):
    daemon_threads = True
    asked: list

    def handle_error(self, request, client_address):
        """Clients that go away are what is tested."""

    @property
    def port(self):
        return self.server_address[1]


@contextlib.contextmanager
def site(tls=None) -> Iterator[Running]:
    server = Running(("127.0.0.1", 0), Site)
    server.asked = []
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def web():
    with site() as server:
        yield server


def fetch(web, *, hosts=("*",), addresses=("127.0.0.1",), permits=lambda address: True, **more):
    """One that takes this machine for a public one, which is called site.example."""
    names = {"site.example": addresses}
    return Fetch(
        hosts=hosts, max_bytes=more.pop("max_bytes", 100_000), timeout_s=more.pop("timeout_s", 5.0),
        ports=more.pop("ports", (web.port,)), permits=permits,
        resolve=more.pop("resolve", lambda host, port: list(names.get(host, [host]))), **more,
    )  # fmt: skip


def url(web, path="picture", host="site.example"):
    return f"http://{host}:{web.port}/{path}"


def only_site(address):
    """The address of the site is public, those that pages lead to are judged as always."""
    return str(address) == "127.0.0.1" or is_public(address)


def test_a_body_comes_as_it_is_and_the_request_tells_nothing_of_us(web, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", "/dev/null")
    assert fetch(web)(url(web, "picture?a=ü&b=%20#part")) == b"pixels"
    path, headers = web.asked[-1]
    assert path == "/picture?a=%C3%BC&b=%20"
    assert headers == {
        "Host": f"site.example:{web.port}", "Accept": "image/*, video/*", "Accept-Encoding": "identity",
        "User-Agent": "cascadevl", "Connection": "close",
    }  # fmt: skip


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "168.63.129.16", "192.88.99.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fe80::1",
        "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1",
        "2a00::5efe:7f00:1", "2a00::200:5efe:8.8.8.8", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(web, address):
    with pytest.raises(MediaError, match="not public"):
        fetch(web, addresses=[address], permits=is_public)(url(web))
    with pytest.raises(MediaError, match="not public"):  # one bad address among good ones is enough
        fetch(web, addresses=["8.8.8.8", address], permits=is_public)(url(web))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:80b::200e"])
def test_addresses_that_are_public(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["2130706433", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "127.1", "1.2.3.0x4", "127.0.0.1.", "①②⑦.0.0.1"]
)
def test_numbers_in_disguise_lead_nowhere(web, host):
    """Even where the system would take them for addresses."""
    seen = []
    with pytest.raises(MediaError):
        fetch(web, permits=is_public, resolve=lambda host, port: seen.append(host) or ["127.0.0.1"])(
            url(web, host=host)
        )
    assert not web.asked or web.asked[-1][1]["Host"].startswith("site.example")


@pytest.mark.parametrize(
    ("hosts", "allowed", "refused"),
    [
        (("site.example",), ["site.example", "SITE.example"], ["a.site.example", "example", "notsite.example"]),
        (("*.example",), ["site.example"], ["example", "site.example.org"]),
        (("*",), ["site.example"], []),
        ((), [], ["site.example"]),
    ],
)
def test_only_hosts_on_the_list_are_asked(web, hosts, allowed, refused):
    asking = fetch(web, hosts=hosts, resolve=lambda host, port: ["127.0.0.1"])
    for host in allowed:
        assert asking(url(web, host=host)) == b"pixels"
    for host in refused:
        with pytest.raises(MediaError, match="not one of the hosts"):
            asking(url(web, host=host))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://site.example/x", "only http"),
        ("file:///etc/passwd", "only http"),
        ("http:///x", "with a host"),
        ("http://user:word@site.example:{port}/", "user or a password"),
        ("http://8.8.8.8@site.example:{port}/", "user or a password"),
        ("http://site.example:22/", "port must be"),
        ("http://site.example:99999/", "its port cannot be read"),
        ("http://[::1/", "cannot be read"),
        ("http://site.example:{port}/a b", "control characters"),
        ("http://site.example:{port}\\@127.0.0.1/", "backslashes"),
        ("http://site.example:{port}/\r\nHost: other", "control characters"),
        ("http://site.example:{port}/" + "a" * 9000, "too long"),
    ],
)
def test_tricks_with_addresses_are_refused(web, address, words):
    with pytest.raises(MediaError, match=words):
        fetch(web)(address.replace("{port}", str(web.port)))


def test_redirects_are_followed_three_times_and_no_more(web):
    assert fetch(web)(url(web, "redirect//redirect//redirect//picture")) == b"pixels"
    with pytest.raises(MediaError, match="more than 3 times"):
        fetch(web)(url(web, "redirect//redirect//redirect//redirect//picture"))
    asked = len(web.asked)
    with pytest.raises(MediaError, match="more than 3 times"):
        fetch(web)(url(web, "loop"))
    assert len(web.asked) == asked + 4


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.2:{port}/picture", "not public"),
        ("http://169.254.169.254:{port}/latest/meta-data/", "not public"),
        ("http://[::1]:{port}/picture", "not public"),
        ("http://2130706434:{port}/picture", "not one of the hosts"),
        ("http://0177.0.0.2:{port}/picture", "not one of the hosts"),
        ("//10.0.0.1:{port}/picture", "not public"),
        ("http://127.0.0.1:9/picture", "port"),
        ("http://me:word@site.example:{port}/picture", "user or a password"),
        ("file:///etc/passwd", "only http"),
        ("gopher://site.example/", "only http"),
        ("data:image/png;base64,AAAA", "only http"),
    ],
)
def test_every_redirect_is_checked_like_the_first_address(web, target, words):
    with pytest.raises(MediaError, match=words):
        fetch(web, permits=only_site)(url(web, "redirect/" + target.replace("{port}", str(web.port))))
    assert web.asked[-1][0].startswith("/redirect")


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(web):
    with pytest.raises(MediaError, match=r"'other.example' is not one of the hosts"):
        fetch(web, hosts=("site.example",))(url(web, f"redirect/http://other.example:{web.port}/picture"))


def test_a_name_that_means_something_else_later_is_asked_where_it_was_checked(web):
    """DNS rebinding: first a public address, then this machine. Here the site's is the public one."""
    answers = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]]
    asked = []

    def resolve(host, port):
        asked.append(host)
        return answers[len(asked) - 1]

    asking = fetch(web, resolve=resolve, permits=only_site)
    assert asking(url(web)) == b"pixels"
    assert asked == ["site.example"]
    with pytest.raises(MediaError, match="not public"):
        asking(url(web))


def test_a_name_that_changes_between_redirects_is_checked_again(web):
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    with pytest.raises(MediaError, match="not public"):
        fetch(web, resolve=lambda host, port: next(answers), permits=only_site)(url(web, "redirect//picture"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("page", "text/html"),
        ("status", "status 500"),
        ("zipped", "compressed"),
        ("huge", "1,000,000,000,000,000 bytes"),
        ("endless", "more than the 100,000 bytes"),
        ("short", "IncompleteRead"),
    ],
)
def test_bodies_that_are_not_taken(web, path, words):
    with pytest.raises(MediaError, match=words):
        fetch(web)(url(web, path))


@pytest.mark.parametrize("path", ["slow", "slowhead", "redirect//slow"])
def test_whoever_drips_is_hung_up_on(web, path):
    started_s = time.monotonic()
    with pytest.raises(MediaError, match=r"more than 0\.3 s"):
        fetch(web, timeout_s=0.3)(url(web, path))
    with pytest.raises(MediaError, match=r"more than 0\.2 s"):
        fetch(web)(url(web, path), 0.2)
    assert time.monotonic() - started_s < 3


def test_whoever_never_answers_is_hung_up_on():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        asking = Fetch(
            hosts=("*",), max_bytes=9, timeout_s=0.2, ports=(silent.getsockname()[1],), permits=lambda address: True
        )
        with pytest.raises(MediaError, match=r"more than 0\.2 s"):
            asking(address)
        with pytest.raises(MediaError, match=r"more than 0\.2 s"):  # nor shakes hands
            asking(address.replace("http:", "https:"))


def test_names_of_certificates_are_checked(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=site.example",
         "-addext", "subjectAltName=DNS:site.example"],
        check=True, capture_output=True,
    )  # fmt: skip
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    trusted = ssl.create_default_context(cafile=str(certificate))
    with site(served) as web:
        secure = url(web).replace("http:", "https:")
        assert fetch(web, tls=trusted)(secure) == b"pixels"
        for asking, address in [
            (fetch(web, tls=trusted, addresses=["127.0.0.1"]), secure.replace("site.example", "127.0.0.1")),
            (fetch(web), secure),
        ]:
            with pytest.raises(MediaError, match="SSLCertVerificationError"):
                asking(address)
        with pytest.raises(MediaError, match="from https to an address that is not"):
            fetch(web, tls=trusted)(secure.replace("/picture", f"/redirect/http://site.example:{web.port}/picture"))


# In a server


def picture_at(address):
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}


def test_a_server_fetches_nothing_unless_it_is_told_to(parts, web):
    asked = len(web.asked)
    with running(Service(parts, ServingConfig(port=0), EngineConfig(cache_bytes=2_000_000))) as server:
        for address in (url(web), "HTTPS://site.example/", "http:site.example/x"):
            status, body, _ = post(server.url, CHAT, picture_at(address))
            assert (status, body["error"]["code"]) == (400, "invalid_media")
            assert "fetches nothing" in body["error"]["message"]
    assert len(web.asked) == asked


def test_a_server_fetches_from_the_hosts_it_is_told(parts, web, picture, monkeypatch):
    picture.save(file := io.BytesIO(), "PNG")
    monkeypatch.setattr(Site, "on_picture", lambda self: self.reply(file.getvalue()))
    config = ServingConfig(port=0, fetch_hosts=("site.example",), media_isolation="thread")
    service = Service(parts, config, EngineConfig(cache_bytes=2_000_000))
    service.preparer.close()
    service.preparer = Preparer(parts, config, fetch(web, hosts=config.fetch_hosts))
    with running(service) as server:
        status, body, _ = post(server.url, CHAT, picture_at(url(web)))
        assert status == 200
        assert body["usage"]["prompt_tokens_details"]["tiles"] > 0
        status, body, _ = post(server.url, CHAT, picture_at(url(web, host="localhost")))
        assert status == 400 and "not one of the hosts" in body["error"]["message"]
        status, body, _ = post(server.url, CHAT, picture_at(url(web, "page")))
        assert status == 400 and "text/html" in body["error"]["message"]


@pytest.mark.parametrize("host", ["http://a.example", "a.example:80", "a.example/x", "", "*.*", "a*.example"])
def test_lists_of_hosts_that_could_not_work_are_refused(host):
    with pytest.raises(ConfigError, match="fetch_hosts"):
        ServingConfig(fetch_hosts=(host,))
