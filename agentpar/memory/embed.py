"""Texts to vectors: what is near to what, for policies that ask it and for whoever searches.

It must never know what is done with a vector. A vector says that two texts are about the same, and
never that they ask for the same: "population of Mauritius" is near "population of Mauritania".
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from agentpar.errors import MissingPackage, ModelServerError, UsageError
from agentpar.redact import HIDDEN, Redactor, public_url, url_credentials

if TYPE_CHECKING:  # httpx loads when a server is asked
    import httpx

Vector = list[float]
"""Of length 1, so that the cosine of two is their product; all zeros where a text says nothing."""

_KNOWN = "'hashed', 'wordllama', or the address of a server, 'http://localhost:8000/v1'"


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors; equal texts into equal ones, in every process.

    ``name`` is that of the space in which the vectors lie: those of two names cannot be compared.
    ``dims`` is how many numbers a vector has. ``embed`` blocks, may be called from any thread, and
    raises `UsageError` for an empty text.
    """

    @property
    def name(self) -> str: ...

    @property
    def dims(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> list[Vector]: ...


def open_embedder(
    spec: str | Embedder, *, model: str | None = None, api_key: str | None = None
) -> Embedder:
    """The embedder that ``spec`` names: ``"hashed"``, ``"wordllama"``, or a server's address, whose
    ``model`` (by default the first it lists) and ``api_key`` may be given. One that is made passes
    through.

    Raises `UsageError` for an unknown one, `MissingPackage` where its package is not installed.
    """
    if not isinstance(spec, str):
        return spec
    if spec.startswith(("http://", "https://")):
        return ServerEmbeddings(spec, model=model, api_key=api_key)
    if model is not None or api_key is not None:
        raise UsageError(f"embeddings: {spec!r} takes no model and no key, only a server does")
    match spec:
        case "hashed":
            return HashedNgrams()
        case "wordllama":
            return WordLlama()
        case _:
            raise UsageError(f"embeddings: {spec!r} is not known; there are {_KNOWN}")


class HashedNgrams:
    """Words and the beginnings, middles and ends of words, hashed into ``dims`` numbers.

    Needs no package and no weights, and knows no synonyms: texts are near that share letters. The
    hash is CRC-32 with a sign (Weinberger et al., "Feature Hashing", 2009), the same everywhere.
    """

    def __init__(self, dims: int = 256) -> None:
        if dims < 8:
            raise UsageError(f"embeddings: dims is {dims!r}; at least 8")
        self._dims = dims

    @property
    def name(self) -> str:
        return f"hashed-{self._dims}"

    @property
    def dims(self) -> int:
        return self._dims

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        return [self._vector(text) for text in _checked(texts)]

    def _vector(self, text: str) -> Vector:
        vector = [0.0] * self._dims
        for feature, weight in _features(text).items():
            hashed = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
            at = (hashed >> 1) % self._dims
            vector[at] += weight if hashed & 1 else -weight
        return _unit(vector)


_WORD = re.compile(r"\w+")
_COMMON = frozenset(
    "a an and are as at be by did do does for from had has have how in is it its of on or that the "
    "their there this to was were what when where which who why will with".split()
)
_GRAM = 4
"""Letters of a piece of a word."""
_COMMON_WEIGHT, _GRAM_WEIGHT = 0.1, 1.0


def _features(text: str) -> dict[str, float]:
    """What of ``text`` is hashed, with its weight: words, and pieces of words."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    words = _WORD.findall("".join(c for c in folded if not unicodedata.combining(c)))
    found: dict[str, float] = {}
    for word, times in Counter(words or [folded.strip()]).items():
        weight = (_COMMON_WEIGHT if word in _COMMON else 1.0) * (1.0 + math.log(times))
        found[f"w {word}"] = weight
        padded = f"<{word}>"
        pieces = [padded[at : at + _GRAM] for at in range(max(1, len(padded) - _GRAM + 1))]
        share = weight * _GRAM_WEIGHT / math.sqrt(len(pieces))
        for piece in pieces:
            found[f"p {piece}"] = found.get(f"p {piece}", 0.0) + share
    return found


class WordLlama:
    """The 256-dimensional vectors whose weights lie in the package ``wordllama`` (extra
    ``embeddings``); nothing is downloaded.

    The package is under the MIT licence; its weights derive from the token embeddings of LLaMA 2,
    so Meta's licence for that model may bear on their use.
    """

    def __init__(self) -> None:
        try:
            import wordllama
        except ImportError:
            raise MissingPackage(
                "wordllama", extra="embeddings", purpose="embedding with WordLlama"
            ) from None
        # Plainly loaded it looks for its tokenizer where the package does not put it, and then
        # asks a hub.
        inside = Path(wordllama.__file__).parent
        try:
            self._model: Any = wordllama.WordLlama.load(cache_dir=inside, disable_download=True)
        except FileNotFoundError as error:
            raise UsageError(
                f"embeddings: this wordllama lies without its weights or its tokenizer ({error}): "
                "install it anew from a wheel"
            ) from None
        self._dims = len(self._model.embed(["a"])[0])

    @property
    def name(self) -> str:
        return f"wordllama-{self._dims}"

    @property
    def dims(self) -> int:
        return self._dims

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        texts = _checked(texts)
        return [_unit(row) for row in self._model.embed(texts).tolist()] if texts else []


class ServerEmbeddings:
    """Asks ``{base_url}/embeddings`` of a server that speaks the OpenAI protocol.

    ``base_url`` usually ends in ``/v1``, which is added where there is no path. ``model`` is the
    served name, by default the first one the server lists. ``timeout`` is seconds of silence. Up
    to ``retries`` further attempts follow a failed connection, 429 and 5xx; ``Retry-After`` is
    honoured. At most ``batch`` texts go at once.

    Raises `ModelServerError` where the server cannot be reached, refuses, or sends what is no
    vectors, or vectors of another size than before.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        batch: int = 128,
    ) -> None:
        import httpx

        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise UsageError(
                f"embeddings: {public_url(base_url)!r} is no address: {error}"
            ) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise UsageError(
                f"embeddings: {public_url(base_url)!r} is no address such as "
                "'http://localhost:8000/v1'"
            )
        if url.query or url.fragment:
            raise UsageError(
                f"embeddings: {public_url(base_url)!r} has more than a path: leave out '?' and "
                "'#', and give a key as api_key"
            )
        url = url if url.path.strip("/") else url.copy_with(path="/v1")
        # No secret in messages, nor in the log that httpx keeps of the addresses it asks.
        self.base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._auth = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        self._api_key = api_key
        self._redactor = Redactor((*url_credentials(str(url)), *([api_key] if api_key else [])))
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._batch = batch
        self._dims = 0
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()  # over the client, the model's name and the size

    def __repr__(self) -> str:
        return f"ServerEmbeddings({self.base_url!r}, model={self._model!r})"

    @property
    def name(self) -> str:
        """Asks the server for the model's name where none was given."""
        return f"server:{self.model()}"

    @property
    def dims(self) -> int:
        """Asks the server for a vector where none has come yet."""
        return self._dims or len(self.embed(["size"])[0])

    def model(self) -> str:
        """The name the server knows the model by."""
        with self._lock:
            if self._model is None:
                answer = self._ask("GET", "/models")
                try:
                    self._model = str(answer["data"][0]["id"])
                except (KeyError, IndexError, TypeError):
                    raise ModelServerError(
                        f"{self.base_url}/models lists no model; is this an OpenAI-compatible "
                        "server? If it is, name the model it serves"
                    ) from None
            return self._model

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        texts, model = _checked(texts), self.model() if texts else ""
        found: list[Vector] = []
        for at in range(0, len(texts), self._batch):
            part = [_sendable(text) for text in texts[at : at + self._batch]]
            body = {"model": model, "input": part, "encoding_format": "float"}
            with self._lock:
                found += self._vectors(self._ask("POST", "/embeddings", body), len(part))
        return found

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _vectors(self, answer: Any, count: int) -> list[Vector]:
        """The vectors in an answer, in the order of the texts; the first ever sets the size."""
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = [[float(number) for number in row["embedding"]] for row in rows]
            in_order = [row["index"] for row in rows] == list(range(count))
        except (KeyError, TypeError, ValueError):
            raise ModelServerError(
                f"{self.base_url}/embeddings sent no vectors: {str(answer)[:80]!r}"
            ) from None
        if not in_order:
            raise ModelServerError(
                f"{self.base_url}/embeddings sent {len(vectors)} vectors for {count} texts"
            )
        for vector in vectors:
            if not vector or not all(map(math.isfinite, vector)):
                raise ModelServerError(
                    f"{self.base_url}/embeddings sent a vector that is empty or not all numbers"
                )
            self._dims = self._dims or len(vector)
            if len(vector) != self._dims:
                raise ModelServerError(
                    f"{self.base_url}/embeddings sent {len(vector)} numbers for a text where it "
                    f"sent {self._dims} before: vectors of two sizes cannot be compared. Is "
                    "another model behind it?"
                )
        return [_unit(vector) for vector in vectors]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that the server answers with. Called under the lock."""
        import httpx
        import tenacity

        from agentpar.net.retry import Refused, is_worth_another_try

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_worth_another_try),
            stop=tenacity.stop_after_attempt(1 + self._retries),
            wait=_pause,
            reraise=True,
        )
        try:
            return attempts(self._ask_once, method, path, body)
        except Refused as error:
            raise ModelServerError(str(error)) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ModelServerError(
                f"no model server answers at {self.base_url} ({error or 'timed out'})"
            ) from error
        except httpx.ReadTimeout as error:
            raise ModelServerError(
                f"{self.base_url} sent nothing for {self._timeout:g} s"
            ) from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ModelServerError(f"{self.base_url} broke off: {what}") from error

    def _ask_once(self, method: str, path: str, body: Any) -> Any:
        response = self._http().request(method, self.base_url + path, json=body)
        try:
            said = response.json()
        except ValueError:
            said = response.text[:200]
        if response.is_success and isinstance(said, dict):
            return said
        if isinstance(said, dict):
            error = said.get("error", said)
            said = error.get("message", error) if isinstance(error, dict) else error
        from agentpar.net.retry import Refused, retry_after

        raise Refused(
            f"{self.base_url}: HTTP {response.status_code} for {path}: {self._public(str(said))}",
            status=response.status_code,
            retry_after=retry_after(response.headers),
        )

    def _http(self) -> httpx.Client:
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            host = httpx.URL(self.base_url).host
            self._client = httpx.Client(
                headers=headers,
                auth=self._auth,
                timeout=httpx.Timeout(self._timeout, connect=5.0),
                trust_env=host not in {"localhost", "127.0.0.1", "::1"},  # no proxy to ourselves
            )
        return self._client

    def _public(self, text: str) -> str:
        """``text`` without the key, which some servers repeat when they refuse it."""
        if self._api_key:
            text = text.replace(self._api_key, HIDDEN)
        return self._redactor.text(text)[:200]


def _pause(state: Any) -> float:
    """Seconds until the next attempt: what the server asks for, else more each time."""
    from agentpar.net.retry import Refused

    error = state.outcome.exception()
    if isinstance(error, Refused) and error.retry_after is not None:
        return error.retry_after
    return float(min(5.0, 0.2 * 2.0 ** (state.attempt_number - 1)))


def _checked(texts: Sequence[str]) -> list[str]:
    """``texts``, none of which is empty; a single text is the caller's mistake."""
    if isinstance(texts, str):
        raise UsageError("embed takes a list of texts; for one text, [text]")
    for at, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"embed: text {at + 1} of {len(texts)} is empty; leave it out")
    return list(texts)


def _sendable(text: str) -> str:
    """``text`` without lone surrogates, which no JSON in UTF-8 can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _unit(vector: Sequence[float]) -> Vector:
    length = math.sqrt(math.fsum(number * number for number in vector))
    return [number / length for number in vector] if length else list(vector)
