"""Pictures and videos behind http and https addresses, for servers that allow it: fetched from other machines only.

A client who names an address makes us ask for it, with our place in the network (server-side request forgery). So each
host must be on a list, its name is resolved once, every address it has must be public, and the connection goes to the
very address that was checked: a name that means something else a moment later (DNS rebinding) changes nothing.
Redirects are followed by hand, and each is checked like the first. Nothing of the client's request goes along, nor a
proxy of the environment, and a body is taken as it is: what is not unpacked cannot be a bomb.
https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

import http.client
import ipaddress
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from cascadevl.core.errors import MediaError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
KINDS = ("image/", "video/", "application/octet-stream", "binary/octet-stream", "application/mp4", "application/ogg")
"""What a body may call itself; none at all is fine too. What it is, the decoder finds out."""
PIECE_BYTES = 2**16

UNICAST_6 = ipaddress.ip_network("2000::/3")
"""All that is given to anybody of IPv6; IPv4 in its clothes (mapped, NAT64, …) lies elsewhere, but for the last two."""
NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's own services, for its machines alone
            "192.88.99.0/24",  # relays of 6to4
            "3fff::/20",  # for documentation
            "2001::/32",  # Teredo
            "2002::/16",  # 6to4
        ),
    )
)
"""Addresses that one Python or another calls global, and that are not, or may lead inside."""


def is_public(address: IPAddress) -> bool:
    """Whether it can only be a machine that anybody may ask."""
    if address.version == 6 and (address not in UNICAST_6 or _is_isatap(int(address))):
        return False
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved)
        and not any(address in network for network in NOT_PUBLIC)
    )


def _is_isatap(address: int) -> bool:
    """The last four bytes are an address of IPv4 (RFC 5214, 6.1)."""
    return (address >> 32) & 0xFDFF_FFFF == 0x0000_5EFE


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system tells them."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """A function from an address to the bytes behind it."""

    hosts: tuple[str, ...]
    """Names that may be asked, `*.example.com` for all below one, `*` for every public one."""
    max_bytes: int
    timeout_s: float = 10.0
    """For all of it: names, redirects and body."""
    ports: tuple[int, ...] = tuple(PORTS.values())
    resolve: Callable[[str, int], list[str]] = resolve
    permits: Callable[[IPAddress], bool] = is_public
    """Which addresses may be asked."""
    tls: ssl.SSLContext | None = None
    """None: certificates are checked against the system's authorities."""

    def __call__(self, url: str, seconds: float = math.inf) -> bytes:
        """Within `seconds`, where that is less. Raises MediaError."""
        timeout_s, asked = min(self.timeout_s, seconds), url
        end_s = time.monotonic() + timeout_s
        try:
            for _ in range(MOST_REDIRECTS + 1):
                found = self._hop(url, end_s)
                if isinstance(found, bytes):
                    return found
                if url.startswith("https:") and not found.startswith("https:"):
                    raise MediaError("it leads from https to an address that is not")
                url = found
            raise MediaError(f"it is redirected more than {MOST_REDIRECTS} times")
        except MediaError as problem:
            raise MediaError(f"{asked!r:.120} cannot be fetched: {problem}. Or send it as a data URL.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= end_s
            reason = f"it takes more than {timeout_s:.3g} s" if late else type(error).__name__
            raise MediaError(f"{asked!r:.120} cannot be fetched: {reason}. Send it as a data URL.") from None

    def _hop(self, url: str, end_s: float) -> bytes | str:
        """A body, or the address that another one leads to."""
        parts = self._parsed(url)
        port = parts.port or PORTS[parts.scheme]
        address = self._address(str(parts.hostname), port)
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection = _Pinned(str(parts.hostname), port, address, left_s, self._tls if parts.scheme == "https" else None)
        # A server that sends a byte now and then never runs into the timeout of a socket.
        watch = threading.Timer(left_s, connection.hang_up)
        watch.daemon = True
        watch.start()
        try:
            connection.request("GET", _target(parts), headers=_HEADERS)
            with connection.getresponse() as response:
                if response.status in REDIRECTS:
                    return urljoin(url, response.getheader("Location") or "")
                body = self._body(response)
            if time.monotonic() >= end_s:  # hung up, which looks like the end
                raise TimeoutError
            return body
        finally:
            watch.cancel()
            connection.close()

    def _parsed(self, url: str) -> SplitResult:
        """An address without tricks, whose host may be asked."""
        if len(url) > 8192 or re.search(r"[\x00-\x20\x7f\\]", url):
            raise MediaError("the address holds spaces, backslashes or control characters, or is too long")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise MediaError("its host or its port cannot be read") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise MediaError("only http and https addresses with a host are fetched")
        if "@" in parts.netloc:
            raise MediaError("addresses with a user or a password are not fetched")
        if (port or PORTS[parts.scheme]) not in self.ports:
            raise MediaError(f"the port must be one of {', '.join(map(str, self.ports))}")
        if not self._listed(parts.hostname):
            raise MediaError(f"{parts.hostname!r:.80} is not one of the hosts that this server fetches from")
        return parts

    def _listed(self, host: str) -> bool:
        host = host.rstrip(".")
        # 2130706433, 0177.1 and 0x7f000001 are 127.0.0.1 to some: a host that ends in a number must be an address.
        if re.fullmatch(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)", host) and not _is_address(host):
            return False
        return any(
            host == each.lower() or each == "*" or (each.startswith("*.") and host.endswith(each[1:].lower()))
            for each in self.hosts
        )

    def _address(self, host: str, port: int) -> str:
        """One address of the name, all of them being permitted. It is looked up here and never again."""
        try:
            found = self.resolve(host, port)
        except (OSError, UnicodeError):
            found = []
        if not found or not all(self.permits(ipaddress.ip_address(each)) for each in found):
            raise MediaError("its host has no address, or one that is not public")
        return found[0]

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            raise MediaError(f"it is answered with the status {response.status}")
        kind = (response.getheader("Content-Type") or KINDS[0]).lower().strip()
        if not kind.startswith(KINDS):
            raise MediaError(f"it is of the type {kind!r:.60}, no picture or video")
        if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
            raise MediaError("it comes compressed, which was not asked for")
        told_bytes = response.length
        if (told_bytes or 0) > self.max_bytes:
            raise MediaError(f"it has {told_bytes:,} bytes; at most {self.max_bytes:,} are fetched")
        body = bytearray()
        while piece := response.read1(PIECE_BYTES):
            body += piece
            if len(body) > self.max_bytes:
                raise MediaError(f"it has more than the {self.max_bytes:,} bytes that are fetched")
        if told_bytes not in (None, len(body)):
            raise http.client.IncompleteRead(bytes(body[:0]))
        return bytes(body)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self.tls or ssl.create_default_context()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that has been checked, in the name of a host."""

    def __init__(self, host: str, port: int, address: str, timeout_s: float, tls: ssl.SSLContext | None) -> None:
        self.default_port = PORTS["https" if tls else "http"]  # which the header Host leaves out
        super().__init__(host, port, timeout=timeout_s)
        self._address, self._tls = address, tls
        self._stream: socket.socket | None = None
        """Stays when http.client has handed `sock` over to a response."""

    def connect(self) -> None:
        self.sock = self._stream = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls is not None:
            self.sock = self._stream = tls = self._tls.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            tls.do_handshake()

    def hang_up(self) -> None:
        """From another thread: whoever waits for a byte wakes up."""
        if self._stream is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._stream, socket.SHUT_RDWR)


def _target(parts: SplitResult) -> str:
    query = f"?{quote(parts.query, safe=_SAFE)}" if parts.query else ""
    return quote(parts.path or "/", safe=_SAFE) + query


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


_SAFE = "/%:=&?~#+!$,;'@()*[]-._"
_HEADERS = {
    "Accept": "image/*, video/*",
    "Accept-Encoding": "identity",
    "User-Agent": "cascadevl",
    "Connection": "close",
}
