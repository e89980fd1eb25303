"""A loaded model with its cache, and the groups that write into it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from agentpar.errors import MissingPackage, UsageError
from agentpar.runtime.hogwild.engine.attention import Attend, attend
from agentpar.runtime.hogwild.engine.group import Group
from agentpar.runtime.hogwild.engine.model import Decoder
from agentpar.runtime.hogwild.engine.replay import Replayed, replay
from agentpar.runtime.hogwild.transcript import Transcript
from agentpar.workers import Layout


class Engine:
    """Groups of workers on ``model``, a loaded transformers model (Llama, Qwen2, Qwen3).

    The cache has ``blocks`` blocks of ``block_size`` tokens each, for all groups together; it lies
    where the model does, in the model's dtype. ``tokenizer`` is only needed by those who hand in
    text. ``attention`` computes what `attention.attend` does. At most ``chunk`` tokens of a prompt
    are computed in a step.

    An engine and its groups belong to one thread at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        blocks: int = 1024,
        block_size: int = 16,
        chunk: int = 512,
        attention: Attend = attend,
    ) -> None:
        for name, value in (("blocks", blocks), ("block_size", block_size), ("chunk", chunk)):
            if value < 1:
                raise UsageError(f"{name} is {value!r}; give 1 or more")
        self.decoder = Decoder(model, attention)
        self.tokenizer = tokenizer
        self.chunk = chunk
        self.cache = self.decoder.cache(blocks, block_size)
        self.ends = _ends(model)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        **settings: Any,
    ) -> Engine:
        """The engine of the model in ``folder``, with its tokenizer; ``settings`` as for `Engine`.

        ``folder`` as `models.resolve` gives it. ``dtype`` is the name of one of torch's, such as
        ``"bfloat16"``. Raises `MissingPackage` without transformers.
        """
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype):
            raise UsageError(f"{dtype!r} is no dtype of torch; give 'float32', 'bfloat16', ...")
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingPackage(
                "transformers", extra="weights", purpose="the reference engine"
            ) from error
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model.to(device).eval(), tokenizer, **settings)

    def group(
        self,
        prefix: str | Sequence[int],
        *,
        layout: Layout = "contiguous",
        separators: Collection[int] = (),
    ) -> Group:
        """A group whose rows all begin with ``prefix``, text or token ids.

        ``separators``: tokens that end a step of the worker that writes them, which matters in
        the layouts with a common history. Use it as a context manager: its blocks are given back
        when it is left. Raises `UsageError` for a prefix that the cache or the model's context
        can never hold, and `CacheFull` where there is no room for it now.
        """
        return Group(
            self.decoder,
            self.cache,
            self.encode(prefix),
            layout=layout,
            separators=frozenset(separators),
            ends=self.ends,
            chunk=self.chunk,
            encode=self.encode,
        )

    def replay(self, transcript: Transcript) -> Replayed:
        """`replay` of ``transcript`` with this model, without gradients."""
        with torch.no_grad():
            return replay(self.decoder, transcript)

    def encode(self, text: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of ``text``, without special tokens added; ids are only checked."""
        if not isinstance(text, str):
            ids = tuple(text)
        elif self.tokenizer is None:
            raise UsageError("this engine has no tokenizer: give token ids, or a tokenizer")
        else:
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        for token in ids:
            if not 0 <= token < self.decoder.vocabulary:
                raise UsageError(
                    f"{token!r} is no token of this model, which has {self.decoder.vocabulary}"
                )
        return ids

    def tokens_with(self, text: str) -> frozenset[int]:
        """All tokens that have ``text`` in them, such as ``"\\n\\n"``: separators for a group."""
        if self.tokenizer is None:
            raise UsageError("this engine has no tokenizer: give token ids, or a tokenizer")
        found = (
            token
            for token in range(min(len(self.tokenizer), self.decoder.vocabulary))
            if text in self.tokenizer.decode([token])
        )
        return frozenset(found)


def _ends(model: Any) -> frozenset[int]:
    """The tokens that end a text of ``model``."""
    settings = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    if found is None:
        found = getattr(model.config, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)
