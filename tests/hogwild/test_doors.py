"""What loads torch, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_views_transcripts_and_the_check_of_a_model_load_nothing_heavy() -> None:
    """Whoever only asks whether a model can share needs no torch."""
    out = run(
        "import sys; from agentpar.runtime.hogwild import rope, sampling, spans, transcript; "
        "print(sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    assert out == "[]\n"


def test_without_torch_the_engine_says_what_to_install() -> None:
    """Not an import error in the depth."""
    out = run(
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import agentpar.runtime.hogwild.engine\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    assert out.startswith("MissingPackage the reference engine needs the package 'torch'")
    assert "pip install 'agentpar[cpu]'" in out
