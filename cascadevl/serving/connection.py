"""A connection read by httptools, with the bound that h11 has, and it has not, on what stands before a body."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65536
"""Of a request line and its headers, as in h11."""


class Connection(HttpToolsProtocol):
    """uvicorn's, which would collect a head that does not end."""

    _in_head, _head_bytes = True, 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
