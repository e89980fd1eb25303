"""Texts to vectors: our own hashing, WordLlama's real weights, and a real server on loopback."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from agentpar.errors import MissingPackage, ModelServerError, UsageError
from agentpar.memory.embed import (
    Embedder,
    HashedNgrams,
    ServerEmbeddings,
    Vector,
    WordLlama,
    open_embedder,
)

wordllama = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="wordllama is not installed"
)
HERE = [pytest.param("hashed"), pytest.param("wordllama", marks=wordllama)]


def cosine(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("spec", HERE)
def test_vectors_are_of_length_one_and_of_one_size(spec: str) -> None:
    """Also for texts without a letter, in other scripts, and with half a character."""
    embedder = open_embedder(spec)
    assert isinstance(embedder, Embedder)
    texts = ["population of Lima", "?!", "利马的人口", "🦙", "e\u0301clair", "half \ud800"]
    if spec == "wordllama":
        texts.pop()  # its tokenizer takes no lone surrogate
    vectors = embedder.embed(texts)
    assert [len(vector) for vector in vectors] == [embedder.dims] * len(texts)
    assert all(math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-6) for vector in vectors)
    assert embedder.name == f"{spec}-{embedder.dims}"
    assert embedder.embed([]) == []


@pytest.mark.parametrize("spec", HERE)
def test_what_says_the_same_is_nearer_than_what_does_not(spec: str) -> None:
    """Whatever the order and the case of its words."""
    lima, same, other = open_embedder(spec).embed(
        ["web_lookup: Lima, population", "the population of LIMA", "melting point of gold"]
    )
    assert cosine(lima, same) > cosine(lima, other) + 0.1


def test_hashing_is_the_same_in_every_process() -> None:
    """Python's own hash differs from process to process; this one must not."""
    script = (
        "import json; from agentpar.memory.embed import HashedNgrams; "
        "print(json.dumps(HashedNgrams(16).embed(['population of Lima'])))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {json.dumps(HashedNgrams(16).embed(["population of Lima"])) + "\n"}


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_refused(text: str) -> None:
    """It would be near to nothing, and a caller that has one has made a mistake."""
    with pytest.raises(UsageError, match="text 2 of 2 is empty"):
        HashedNgrams().embed(["Lima", text])
    with pytest.raises(UsageError, match="a list of texts"):
        HashedNgrams().embed("Lima")


def test_an_unknown_embedder_is_named_with_the_known_ones() -> None:
    """And a key for one that asks nobody is a mistake, not ignored."""
    with pytest.raises(UsageError, match="'wordlama' is not known; there are 'hashed', 'wordlla"):
        open_embedder("wordlama")
    with pytest.raises(UsageError, match="'hashed' takes no model and no key"):
        open_embedder("hashed", api_key="k")
    with pytest.raises(UsageError, match="dims is 2"):
        HashedNgrams(2)
    made = HashedNgrams(64)
    assert open_embedder(made) is made


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is in the message."""
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingPackage, match=r"pip install 'agentpar\[embeddings\]'"):
        WordLlama()


# A server


Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server(ThreadingHTTPServer):
    """Answers ``/v1/embeddings`` with what ``answers`` say in turn, the last for ever."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: list[Answer] = [vectors()]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.wait: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": "little"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        assert self.path == "/v1/embeddings"
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["authorization"])
        answers = self.server.answers
        self._say(*(answers.pop(0) if len(answers) > 1 else answers[0])(body))

    def _say(self, status: int, data: Any) -> None:
        body = data.encode() if isinstance(data, str) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if self.server.wait is not None:
            self.send_header("retry-after", self.server.wait)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def vectors(size: int = 3) -> Answer:
    """The length of each text in the first number, sent in the reverse order."""

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        rows = [
            {"index": at, "embedding": [float(len(text)), *([1.0] * (size - 1))]}
            for at, text in enumerate(body["input"])
        ]
        return 200, {"data": rows[::-1]}

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def asked(server: Server) -> Iterator[ServerEmbeddings]:
    embedder = open_embedder(server.url, api_key="secret-key-1")
    assert isinstance(embedder, ServerEmbeddings)
    yield embedder
    embedder.close()


def test_a_servers_vectors_come_in_the_order_of_the_texts(
    server: Server, asked: ServerEmbeddings
) -> None:
    """Whatever order it sends them in; with the key, and the first model it lists."""
    short, long = asked.embed(["a", "abcdefghij"])
    assert long[0] > short[0]
    assert math.isclose(math.hypot(*long), 1.0)
    assert (asked.name, asked.dims) == ("server:little", 3)
    assert server.bodies == [
        {"model": "little", "input": ["a", "abcdefghij"], "encoding_format": "float"}
    ]
    assert server.keys == ["Bearer secret-key-1"]


def test_many_texts_go_in_parts(server: Server) -> None:
    """No request is larger than the batch, and nothing is lost between two."""
    embedder = ServerEmbeddings(server.url, model="m", batch=2)
    texts = ["a" * n for n in range(1, 6)]
    found = embedder.embed(texts)
    assert [len(body["input"]) for body in server.bodies] == [2, 2, 1]
    assert [round(vector[0] / vector[1]) for vector in found] == [1, 2, 3, 4, 5]
    assert embedder.embed(["half \ud800"])
    embedder.close()


def test_a_size_that_changes_is_told(server: Server, asked: ServerEmbeddings) -> None:
    """Another model behind the address: its vectors must not mix with the earlier ones."""
    server.answers = [vectors(3), vectors(4)]
    asked.embed(["a"])
    with pytest.raises(ModelServerError, match=r"sent 4 numbers .* sent 3 before"):
        asked.embed(["b"])
    assert asked.dims == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {"data": []}), "sent 0 vectors for 1 texts"),
        ((200, {"data": [{"index": 0, "embedding": []}]}), "empty or not all numbers"),
        ((200, {"data": [{"index": 0, "embedding": [1.0, math.nan]}]}), "empty or not all"),
        ((200, {"object": "error"}), "sent no vectors"),
        ((200, "<html>"), "HTTP 200 for /embeddings: <html>"),
        ((400, {"error": {"message": "no model 'secret-key-1'"}}), r"HTTP 400 .*no model '\*\*\*'"),
        ((404, {"detail": "Not Found"}), "HTTP 404 for /embeddings"),
    ],
)
def test_an_answer_that_is_none_is_told(
    server: Server, asked: ServerEmbeddings, answer: tuple[int, Any], message: str
) -> None:
    """In the server's own words where it has some, and never with the key."""
    server.answers = [lambda _: answer]
    with pytest.raises(ModelServerError, match=message):
        asked.embed(["a"])


def test_a_busy_server_is_asked_again(server: Server, asked: ServerEmbeddings) -> None:
    """429 with the time it asks for; one that asks for an hour is given up on at once."""
    server.wait = "0"
    server.answers = [lambda _: (429, {}), lambda _: (503, {}), vectors()]
    assert len(asked.embed(["a"])) == 1
    server.wait = "3600"
    server.answers = [lambda _: (429, {"error": "later"})]
    with pytest.raises(ModelServerError, match="HTTP 429"):
        asked.embed(["a"])
    assert len(server.bodies) == 4


def test_a_server_that_is_not_there_is_told(server: Server) -> None:
    """By its address, without the password in it."""
    embedder = ServerEmbeddings("http://me:hidden-word@127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(ModelServerError, match=r"no model server answers at http://127.0.0.1:9/v1"):
        embedder.embed(["a"])
    assert "hidden-word" not in repr(embedder)
    for wrong in ("http://", "https://host/v1?key=hidden-word"):
        with pytest.raises(UsageError, match="embeddings: ") as error:
            open_embedder(wrong)
        assert "hidden-word" not in str(error.value)
