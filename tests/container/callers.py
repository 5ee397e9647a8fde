"""Callers who keep their connections and ask one thing after another: what became of each request that they sent."""

import io
import math
import threading
from collections import Counter

import httpx
from PIL import Image


def dearest(max_pixels: int, max_body_bytes: int) -> tuple[bytes, bytes]:
    """The picture that takes most to decode, a WebP of some bytes; and the largest that is all body, a BMP."""
    webp, bmp = io.BytesIO(), io.BytesIO()
    side = math.isqrt(max_pixels)
    Image.new("RGBA", (side, side), (1, 2, 3, 255)).save(webp, "WEBP", lossless=True, method=0)
    side = math.isqrt((max_body_bytes - 100) // 3) // 4 * 4  # rows are padded to four bytes
    Image.new("RGB", (side, side)).save(bmp, "BMP")
    return webp.getvalue(), bmp.getvalue()


class Callers:
    """Threads that post `body` to `url`, each on a connection of its own, until they are told that it drains.

    Or until the address refuses them: whoever is told to go elsewhere does so.
    """

    def __init__(self, url: str, body: bytes, count: int = 16) -> None:
        self._url = url
        self._body = body
        self._outcomes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._answered = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def wait_for_answers(self, count: int) -> None:
        """Raises TimeoutError where so many have not come, each within a minute."""
        for _ in range(count):
            if not self._answered.acquire(timeout=60):
                raise TimeoutError(f"callers were not answered: {dict(self._outcomes)}")

    def join(self) -> Counter[str]:
        """How often what happened: a status for a whole answer; `refused`: no connection; `cut`: a request that was
        sent and not answered, or not wholly.
        """
        for thread in self._threads:
            thread.join()
        return self._outcomes

    def _ask_on(self) -> None:
        with httpx.Client(timeout=60) as client:
            outcome = ""
            while outcome not in ("503", "refused"):
                outcome = self._ask(client)
                with self._lock:
                    self._outcomes[outcome] += 1
                self._answered.release()

    def _ask(self, client: httpx.Client) -> str:
        try:
            return str(client.post(self._url, content=self._body).status_code)
        except httpx.ConnectError:
            return "refused"
        except httpx.TransportError:
            return "cut"
