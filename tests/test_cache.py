"""The cache folder: where it is, files that are whole, locks that are never stale."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentpar.cache import home, lock_nowait, user_cache, write_whole


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTPAR_HOME before XDG_CACHE_HOME before ~/.cache."""
    for name in ("AGENTPAR_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert home() == Path("~/.cache/agentpar").expanduser()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert (home(), user_cache()) == (Path("/somewhere/agentpar"), Path("/somewhere"))
    monkeypatch.setenv("AGENTPAR_HOME", "/home-of-it")
    assert home() == Path("/home-of-it")


@pytest.mark.parametrize("data", ["größer\n", b"\x00\xff"])
def test_a_file_is_written_with_its_folders(tmp_path: Path, data: bytes | str) -> None:
    """Text as UTF-8 whatever the locale, bytes as they are."""
    file = tmp_path / "a" / "b" / "state.json"
    write_whole(file, data)
    assert file.read_bytes() == (data.encode() if isinstance(data, str) else data)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """Whether the data is at fault or its place: the old content, and no part of the new."""
    file, folder = tmp_path / "state.json", tmp_path / "folder"
    write_whole(file, "old")
    folder.mkdir()
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "new \ud800")
    with pytest.raises(OSError, match="folder"):
        write_whole(folder, "new")
    assert file.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [folder, file]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each writes a part of its own: the file is whole, and nobody's part is missing."""
    file = tmp_path / "state.json"

    def write(char: str) -> None:
        for _ in range(100):
            write_whole(file, char * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh"))
    assert file.read_text() in {char * 10_000 for char in "abcdefgh"}
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    """Held by a living process it is refused; killed, the kernel gives it free."""
    lock = tmp_path / "lock"
    hold = (
        "import sys, time; from pathlib import Path; from agentpar.cache import lock_nowait"
        "\nwith lock_nowait(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        with lock_nowait(lock) as mine:
            assert not mine
        holder.kill()
    with lock_nowait(lock) as mine:
        assert mine
