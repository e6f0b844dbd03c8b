"""Pages of the key-value cache: who holds which, and which may be found again by their content.

Plain bookkeeping without tensors. A page is free, held (by one request or by several that share it), or kept:
nobody's, but full and known by its content, so that a prompt that begins the same can take it. Kept pages are
given up, the longest unused first, when no free page is left. Sharing by chained hashes as in vLLM's prefix cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from cascadevl.core.errors import ConfigError, InternalError


class PagePool:
    """`num_pages` pages of `page_size` tokens each, numbered from 0."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1 or page_size < 1:
            raise ConfigError(f"A cache needs pages of at least one token, got {num_pages} of {page_size}.")
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages))[::-1]
        self._holders = [0] * num_pages
        self._content: list[bytes | None] = [None] * num_pages
        self._found: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages that `take` could give."""
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """An empty page for one holder, or None where all are held."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._holders[page] = 1
        return page

    def find(self, contents: Iterable[bytes]) -> list[int]:
        """The longest run of known pages with these contents; the caller holds them from now on."""
        pages = []
        for content in contents:
            page = self._found.get(content)
            if page is None:
                break
            self._kept.pop(page, None)
            self._holders[page] += 1
            pages.append(page)
        return pages

    def publish(self, page: int, content: bytes) -> None:
        """A held page is full and holds `content`: others may find it. The first of several alike is found."""
        assert self._holders[page] > 0, f"page {page} is nobody's"
        if self._content[page] is None and content not in self._found:
            self._content[page] = content
            self._found[content] = page

    def release(self, pages: Iterable[int]) -> None:
        """Their holder gives them back; the last tokens go first when pages are needed."""
        for page in reversed(list(pages)):
            assert self._holders[page] > 0, f"page {page} was given back twice"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if self._content[page] is None:
                    self._free.append(page)
                else:
                    self._kept[page] = None

    def clear(self) -> None:
        """Forget what nobody holds, as after new weights."""
        while self._kept:
            page, _ = self._kept.popitem()
            self._forget(page)
            self._free.append(page)
        for page, content in enumerate(self._content):
            if content is not None:
                self._forget(page)

    def _forget(self, page: int) -> None:
        content = self._content[page]
        if content is not None:
            del self._found[content]
            self._content[page] = None

    def check_integrity(self, held: Iterable[Sequence[int]] = ()) -> None:
        """Raise InternalError unless every page is in one place and held as often as `held` lists it."""
        counts = [0] * self.num_pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        free, kept = set(self._free), set(self._kept)
        problems = [
            (counts != self._holders, "pages are not held as often as requests list them"),
            (len(free) != len(self._free) or free & kept, "a page is free twice"),
            (free | kept != {p for p, n in enumerate(self._holders) if n == 0}, "an unheld page is lost"),
            (any(self._content[page] is not None for page in free), "a free page is still found"),
            (any(self._content[page] is None for page in kept), "a page is kept without a content"),
            (
                self._found != {content: page for page, content in enumerate(self._content) if content is not None},
                "the index of contents is not that of the pages",
            ),
        ]
        for wrong, what in problems:
            if wrong:
                raise InternalError(f"The page table is broken: {what}.")


def page_contents(keys_T: np.ndarray, page_size: int, start: bytes = b"", known: Sequence[bytes] = ()) -> list[bytes]:
    """A name for each full page: of its tokens and of all before them.

    `keys_T` (T,), int64: the token id, or for visual tokens something that stands for the picture. `start` is what
    else the keys and values depend on, such as an adapter. `known`: the names of the first pages, from before.
    """
    contents = list(known)
    chained = contents[-1] if contents else hashlib.blake2b(start, digest_size=16).digest()
    for first in range(len(contents) * page_size, len(keys_T) - page_size + 1, page_size):
        chained = hashlib.blake2b(chained + keys_T[first : first + page_size].tobytes(), digest_size=16).digest()
        contents.append(chained)
    return contents
