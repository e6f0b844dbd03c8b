"""What a client is told when it gets no answer: OpenAI's error body, and the status that belongs to it."""

from typing import Any

from cascadevl.core.errors import CascadeError, MediaError, UserError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
"""Status -> `type` of the error."""


class Refused(CascadeError):
    """Raised anywhere in this room; becomes a response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}"""
        return {
            "error": {
                "message": _printable(str(self)),
                "type": TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def refusal(error: Exception) -> Refused:
    """Any exception as a refusal: a user's mistake is 400, and what is ours keeps its details to the log."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UserError):
        return Refused(
            400,
            str(error),
            code="invalid_media" if isinstance(error, MediaError) else "invalid_request",
            param="messages" if isinstance(error, MediaError) else None,
        )
    return Refused(500, "The server made a mistake with this request; its log tells which.", code="internal_error")


def _printable(text: str) -> str:
    """A lone surrogate, which a client may have sent and UTF-8 cannot hold, is shown as its escape."""
    return text.encode(errors="backslashreplace").decode()
