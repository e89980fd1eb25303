"""Every error agentpar raises, sorted by whose fault it is.

AgentparError
├── UsageError            the caller: a wrong argument, an unknown name
│   ├── ConfigError       a YAML file, with file:line:column
│   ├── CannotShare       a model or runtime whose workers cannot share one cache
│   └── MissingPackage    an optional package is not installed (the message has the command)
├── Deadlock              code under test in virtual time: all wait, and nothing will come
├── PlanError             the model: text that is no plan, a reference that leads nowhere
└── BackendError          the world
    ├── RunFailed         a run ended without an answer (`answer` holds what it did find)
    ├── ModelServerError  the model server: unreachable, refused, broke off
    │   └── GrammarRefused  it cannot decode under the grammar of a request
    ├── CacheFull         a model's cache has no room for a prompt at present
    ├── WeightsError      model weights: not found, wrong hash, not convertible
    ├── FetchError        a page or a search: refused address, too large, not text
    ├── BankError         the memory bank: damaged, of another version, read-only, full, gone
    └── JournalError      the journal: damaged, read-only, full, gone
        └── LeaseLost     another process has taken this run over

A caller's mistake raises at once. The model's mistakes and a tool's failures do not
travel as exceptions: they become data (`PlanFault`, `Failed`) that the joiner reads.
"""

from __future__ import annotations


class AgentparError(Exception):
    """Base of every error raised on purpose by agentpar."""


class UsageError(AgentparError):
    """The caller's mistake: says what was wrong, where, and what to do."""


class ConfigError(UsageError):
    """A mistake in a configuration file; the message starts with ``file:line:column``."""


class CannotShare(UsageError):
    """Workers of this model, or on this runtime, cannot share one cache; says what it is due to."""


class MissingPackage(UsageError, ImportError):
    """An optional package is needed and absent."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f"pip install 'agentpar[{extra}]'"
        )
        self.package = package
        self.extra = extra


class Deadlock(AgentparError):
    """In virtual time: every task waits, and nothing is left that could wake one."""


class PlanError(AgentparError):
    """The model's mistake, where it has to be raised (a reference that leads nowhere)."""


class BackendError(AgentparError):
    """The world's failure, once retries are spent."""


class RunFailed(BackendError):
    """A run ended without an answer; ``answer`` holds its outcomes, usage and id."""

    def __init__(self, message: str, answer: object) -> None:
        super().__init__(message)
        self.answer = answer


class ModelServerError(BackendError):
    """The model server could not be started or reached, refused, or broke off."""


class GrammarRefused(ModelServerError):
    """The model server cannot decode under the grammar it was given; without one it may."""


class CacheFull(BackendError):
    """The cache of a model has no room for a prompt at present; it may have when others end."""


class WeightsError(BackendError):
    """Model weights were not found, did not match their hash, or could not be converted."""


class FetchError(BackendError):
    """A page or a search could not be had: address refused, too large, not text, HTTP error.

    ``status`` is the HTTP status where there was one, ``retry_after`` the seconds for which the
    server asked to be left alone.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class BankError(BackendError):
    """The memory bank could not be read or written; what it holds is untouched."""


class JournalError(BackendError):
    """The journal could not be read or written; what it holds is untouched."""


class LeaseLost(JournalError):
    """Another process has taken the run over: this one may write nothing more."""
