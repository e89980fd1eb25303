"""vLLM's scheduler, which starts the rows of a group together and never takes memory from one.

What a row wrote under the eyes of others cannot be computed again by the row alone. From that:

- The prefix cache takes from a row, and gives to it, full blocks of the prefix only.
- A row is never preempted. A group is promised its worst case before it begins (`admission`);
  ordinary requests are preempted in its favour. A row that finds no block left ends there.
- The blocks of a finished row stay until its group ends, since the others look at them.

A server that has no live group schedules as vLLM does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from agentpar.errors import CannotShare, UsageError
from agentpar.runtime.hogwild.plugin import WAIT, contract
from agentpar.runtime.hogwild.plugin.admission import Pool, Row
from agentpar.runtime.hogwild.plugin.frontend import REFUSED, require_row
from agentpar.runtime.hogwild.plugin.notice import ATTRIBUTE, Joined, Notice
from agentpar.runtime.hogwild.plugin.params import Member, parse

logger = init_logger(__name__)

NO_BLOCK = "no block of the cache was left for this row"
NO_PLACE = "what this row sees of its group is as long as the model's context"
"""The ``stop_reason`` of a row that ends with ``length`` before its own limit."""

FIRST = -(1 << 62)
"""The priority of a running row: vLLM preempts those with higher numbers first."""


@dataclass(slots=True)
class _Group:
    """Rows that have begun together, or joined since."""

    number: int
    name: str
    rows: dict[str, _Waiting] = field(default_factory=dict)  # by request, the finished included
    live: dict[str, None] = field(default_factory=dict)  # requests that have not finished
    promised: int = 0  # blocks
    cached: int = 0  # full blocks of the prefix that its rows hold and the prefix cache knows
    leader: str | None = None  # the request that computes the prefix for the others
    hold: float = 0.0  # seconds that it is kept when all its rows have finished
    held_until: float = 0.0


@dataclass(slots=True)
class _Waiting:
    """A request that wants to be a row, and ``group`` once it has begun."""

    request: Request
    member: Member
    row: Row
    since: float
    group: _Group | None = None


class GroupScheduling(Scheduler):  # type: ignore[misc]
    """The part that is the same for scheduling at each step and for scheduling ahead."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.running: list[Request] = []
        super().__init__(*arguments, **named)
        contract.require(self, "scheduler")
        manager = self.kv_cache_manager
        if len(self.kv_cache_config.kv_cache_groups) != 1:
            raise CannotShare(
                f"this model has {len(self.kv_cache_config.kv_cache_groups)} kinds of cache; "
                "workers can share that of a model that has one"
            )
        self._block_pool = manager.block_pool
        self._pool = Pool(
            total=self._block_pool.num_gpu_blocks - 1,  # one stands for "no block"
            size=self.block_size,
            shares=manager.enable_caching,
        )
        config = self.vllm_config.model_config.hf_text_config
        self._context = max(self.max_model_len, getattr(config, "max_position_embeddings", 0))
        self._patience = _seconds(os.environ.get(WAIT, "2"))
        self._rows: dict[str, _Waiting] = {}  # by request
        self._line: dict[str, list[_Waiting]] = {}  # rows that have not begun, by group name
        self._groups: dict[str, _Group] = {}  # live ones, by name
        self._numbers = 0
        self._joined: list[Joined] = []
        self._ended: list[int] = []
        self._due: dict[str, tuple[RequestStatus, str]] = {}  # requests to end, and why
        self._resting: set[str] = set()  # preempted in this step
        self._next_in_line: tuple[int, float] | None = None
        coordinator = manager.coordinator
        self._cache_blocks = coordinator.cache_blocks
        coordinator.cache_blocks = self._cache_prefix_only

    # What comes in and goes out.

    def add_request(self, request: Request) -> None:
        parameters = request.sampling_params
        arguments = parameters.extra_args if parameters is not None else None
        super().add_request(request)
        try:
            if request.request_id in self._rows or (member := parse(arguments)) is None:
                return
            self._check(request, member)
        except UsageError as error:
            self._refuse(request, str(error))
            return
        row = Row(
            prompt=request.num_prompt_tokens,
            limit=min(request.num_prompt_tokens + request.max_tokens, self.max_model_len) - 1,
            prefix=member.prefix,
        )
        waiting = _Waiting(request, member, row, time.monotonic())
        self._rows[request.request_id] = waiting
        self._line.setdefault(member.group, []).append(waiting)

    def update_from_output(
        self, scheduler_output: Any, model_runner_output: Any
    ) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for request_id, (status, reason) in list(self._due.items()):
            request = self.requests.get(request_id)
            if request is None or request.is_finished():
                del self._due[request_id]  # it has ended in another way meanwhile
                continue
            if request.num_in_flight_tokens:
                continue  # what it wrote last is still to come
            del self._due[request_id]
            self.finish_requests(request_id, status)
            request.stop_reason = reason
            output = EngineCoreOutput(
                request_id=request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=reason,
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
            own = outputs.setdefault(request.client_index, EngineCoreOutputs())
            own.outputs = [*own.outputs, output]
        return outputs

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        if reset_running_requests and self._groups:
            logger.warning("the prefix cache is not reset: a group is running, which cannot stop")
            return False
        done: bool = super().reset_prefix_cache(reset_running_requests, reset_connector)
        return done

    def _check(self, request: Request, member: Member) -> None:
        """Raise `UsageError` where ``request`` cannot be the row it wants to be."""
        require_row(member, request)
        row = f"worker {member.worker!r} of group {member.group!r}"
        if member.size > self.max_num_active_reqs:
            raise UsageError(
                f"{row} expects {member.size} rows, but this server runs at most "
                f"{self.max_num_active_reqs} requests at once (--max-num-seqs)"
            )
        self._end_the_held()  # nobody may have scheduled anything since its time was over
        group = self._groups.get(member.group)
        if member.late and group is None:
            raise UsageError(f"{row} comes late: the group has ended")
        present = [*(group.rows.values() if group else ()), *self._line.get(member.group, ())]
        for other in present:
            _require_alike(other, request, member)

    def _refuse(self, request: Request, reason: str) -> None:
        self._due[request.request_id] = (RequestStatus.FINISHED_ERROR, REFUSED + reason)

    # A step.

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self._resting.clear()
        self._next_in_line = None
        if not (self._rows or self._due or self._ended):
            return super().schedule(throttle_prefills)
        self._end_the_held()
        aside: list[Request] = []
        if self._pause_state == PauseState.UNPAUSED:
            self._begin_groups()
        if self._pause_state != PauseState.PAUSED_ALL:
            aside = self._make_room()
        output = super().schedule(throttle_prefills)
        self.running = [*aside, *self.running]
        if self._joined or self._ended:
            notice = Notice(tuple(self._joined), tuple(self._ended))
            setattr(output, ATTRIBUTE, notice)
            self._joined, self._ended = [], []
        return output

    def _begin_groups(self) -> None:
        """Let those in line begin whose group is complete and has its place in memory."""
        free: int = self._block_pool.get_num_free_blocks()
        if self.running:
            free -= self.kv_cache_manager.watermark_blocks
        for name, line in list(self._line.items()):
            group = self._groups.get(name)
            if group is None:
                expected = max(waiting.member.size for waiting in line)
                late = time.monotonic() - min(waiting.since for waiting in line)
                if len(line) < expected and late < self._patience:
                    continue
                free = self._begin(name, _Group(self._numbers + 1, name), list(line), free)
            else:
                for waiting in list(line):  # each joins for itself
                    free = self._begin(name, group, [waiting], free)

    def _begin(self, name: str, group: _Group, joining: list[_Waiting], free: int) -> int:
        """Let ``joining`` begin in ``group`` if they may; the blocks that are free after that."""
        present = [waiting.row for waiting in group.rows.values()]
        new = [waiting.row for waiting in joining]
        promised = sum(other.promised for other in self._groups.values() if other is not group)
        verdict = self._pool.verdict(present, joining=new, promised=promised)
        need = self._pool.prompts(new)
        length = new[0].prefix + sum(row.prompt - row.prefix for row in [*present, *new])
        fault = None
        if verdict == "wait" and group.rows and not (group.live or promised):
            fault = (
                "has no room left for another row: what its rows hold and this one's worst case "
                f"are more than the {self._pool.total} blocks of the cache"
            )
        elif verdict == "refuse":
            fault = (
                f"is larger than memory: the prompts of {len(new)} rows take {need} blocks of "
                f"{self._pool.size} tokens, the cache has {self._pool.total}"
            )
        elif length > self._context:
            fault = (
                f"is larger than the model's context: its prompts have {length} tokens one after "
                f"the other, and the model knows {self._context} positions"
            )
        if fault is not None:
            for waiting in joining:
                self._refuse(waiting.request, f"group {name!r} {fault}")
            self._leave_line(joining)
            return free
        if verdict == "wait":
            return free
        if need > free:
            # It waits for requests that run, and those that came after it wait behind it.
            first = min(_order(waiting.request) for waiting in joining)
            self._next_in_line = min(self._next_in_line or first, first)
            return free
        self._leave_line(joining)
        if group.number > self._numbers:
            self._numbers = group.number
            self._groups[name] = group
        for waiting in joining:
            waiting.group = group
            group.rows[waiting.request.request_id] = waiting
            group.live[waiting.request.request_id] = None
            group.hold = waiting.member.hold
            self._joined.append(_joined(group, waiting))
        group.promised = self._pool.worst([*present, *new])
        return free - need

    def _leave_line(self, leaving: Iterable[_Waiting]) -> None:
        for waiting in list(leaving):
            line = self._line[waiting.member.group]
            line.remove(waiting)
            if not line:
                del self._line[waiting.member.group]

    def _make_room(self) -> list[Request]:
        """See that no row will want for a block in this step; rows that stay out of it.

        Afterwards the running rows come first, those with the least to compute before the others,
        so that neither memory nor the step's token budget is gone before them.
        """
        self._forget_the_starved()
        rows = [request for request in self.running if request.request_id in self._rows]
        for request in rows:
            request.priority = FIRST
        rows.sort(key=_pending)
        full = {name for name, group in self._groups.items() if not self._has_place(group)}
        aside = []
        reserved = 0
        for request in rows:
            need = self._blocks_wanted(request)
            reason = NO_PLACE if self._rows[request.request_id].member.group in full else NO_BLOCK
            if reason is NO_BLOCK and self._free_up(reserved + need):
                reserved += need
            else:
                aside.append(request)
                self._due[request.request_id] = (RequestStatus.FINISHED_LENGTH_CAPPED, reason)
        for group in self._groups.values():
            reserved = self._make_room_to_start(group, reserved)
        running = [request for request in rows if request not in aside]
        self.running = [*running, *(r for r in self.running if r.request_id not in self._rows)]
        return aside

    def _make_room_to_start(self, group: _Group, reserved: int) -> int:
        """The same for rows of ``group`` that have begun and not yet run; blocks then reserved."""
        runs = any(self.requests[r].status == RequestStatus.RUNNING for r in group.live)
        cached = group.cached
        for request_id in group.live:
            waiting = group.rows[request_id]
            if waiting.request.status != RequestStatus.WAITING:
                continue
            common = self._pool.common(waiting.row)
            need = self._blocks_wanted(waiting.request) - min(cached, common)
            if self._free_up(reserved + need):
                reserved += need
                cached = max(cached, common)  # the rows behind it take the prefix from it
            elif not runs:
                # Nobody of its group runs, so nothing will ever be freed for it.
                self._due[request_id] = (RequestStatus.FINISHED_LENGTH_CAPPED, NO_BLOCK)
        return reserved

    def _has_place(self, group: _Group) -> bool:
        """Whether what the rows of ``group`` hold after this step is within the model's context.

        They see each other's tokens one after the other, at positions the model must know.
        """
        prefix, held = 0, 0
        for waiting in group.rows.values():
            prefix = waiting.member.prefix
            held += max(0, self._tokens_held(waiting.request) - prefix)
        return bool(prefix + held <= self._context)

    def _tokens_held(self, request: Request) -> int:
        """Tokens that ``request`` has in the cache after this step, at most."""
        if request.is_finished():
            return int(request.num_computed_tokens)
        pending = request.num_tokens + request.num_output_placeholders
        return int(min(pending, self.max_model_len))

    def _forget_the_starved(self) -> None:
        """Rows that found no block in an earlier step may find one now."""
        for request_id in [r for r, (_, reason) in self._due.items() if reason == NO_BLOCK]:
            del self._due[request_id]

    def _blocks_wanted(self, request: Request) -> int:
        """Blocks that ``request`` may take in this step, at most."""
        held = len(self.kv_cache_manager.get_block_ids(request.request_id)[0])
        return max(0, -(-self._tokens_held(request) // self._pool.size) - held)

    def _free_up(self, blocks: int) -> bool:
        """Preempt ordinary requests until ``blocks`` are free; whether they are."""
        while blocks > self._block_pool.get_num_free_blocks():
            ordinary = [r for r in self.running if r.request_id not in self._rows]
            ordinary = [r for r in ordinary if self._request_blocks_can_be_freed(r)]
            if not ordinary:
                return False
            if self.policy == SchedulingPolicy.PRIORITY:
                victim = max(ordinary, key=_order)
            else:
                victim = ordinary[-1]
            self.running.remove(victim)
            self._preempt_request(victim, time.monotonic())
            self._resting.add(victim.request_id)
        return True

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether ``request``, which waits, may be scheduled in this step."""
        request_id = request.request_id
        if request_id in self._due or request_id in self._resting:
            return False
        waiting = self._rows.get(request_id)
        if waiting is None:
            if self._next_in_line is not None and _order(request) > self._next_in_line:
                return False
        elif waiting.group is None:
            return False
        if not super()._handle_blocked_waiting_request(request):
            return False
        return waiting is None or waiting.group is None or self._has_prefix(waiting.group, waiting)

    def _has_prefix(self, group: _Group, waiting: _Waiting) -> bool:
        """Whether the row can take the prefix from the cache, or is the one to compute it.

        Without this, rows that start in one step would compute and hold a prefix each.
        """
        if group.cached >= self._pool.common(waiting.row):
            return True
        if group.leader not in group.live:
            group.leader = waiting.request.request_id
        return bool(group.leader == waiting.request.request_id)

    # Memory.

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        blocks, count, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        waiting = self._rows.get(request.request_id)
        if waiting is not None:
            # What lies behind the prefix was computed by a request that saw nobody.
            most = self._pool.common(waiting.row) * self._pool.size
            if count > most:
                blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, most)
                count = most
        return blocks, count, boundary, diverged

    def _cache_prefix_only(self, request: Request, num_computed_tokens: int) -> None:
        waiting = self._rows.get(request.request_id)
        if waiting is not None:
            num_computed_tokens = min(num_computed_tokens, waiting.member.prefix)
            if waiting.group is not None:
                full = num_computed_tokens // self._pool.size
                waiting.group.cached = max(waiting.group.cached, full)
        self._cache_blocks(request, num_computed_tokens)

    def _preempt_request(self, request: Request, *arguments: Any, **named: Any) -> None:
        waiting = self._rows.get(request.request_id)
        assert waiting is None or waiting.group is None, (
            f"a row of group {waiting.member.group!r} was about to be preempted"
        )
        super()._preempt_request(request, *arguments, **named)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        waiting = self._rows.get(request.request_id)
        if waiting is None or waiting.group is None:
            if waiting is not None:
                del self._rows[request.request_id]
                if waiting in self._line.get(waiting.member.group, ()):
                    self._leave_line([waiting])
                    self._end_the_held()
            return super()._free_request(request, delay_free_blocks)
        found = super()._free_request(request, True)
        group = waiting.group
        group.live.pop(request.request_id, None)
        # It will not grow any more: what it was promised beyond that is free for others.
        held = len(self.kv_cache_manager.get_block_ids(request.request_id)[0])
        most = max(held, self._pool.common(waiting.row)) * self._pool.size
        waiting.row = replace(waiting.row, limit=min(waiting.row.limit, most))
        group.promised = self._pool.worst(waiting.row for waiting in group.rows.values())
        if not group.live:
            group.held_until = time.monotonic() + group.hold
            self._end_the_held()
        return found

    def _end_the_held(self) -> None:
        """Groups none of whose rows write any more end when nobody has come for so long; not while
        somebody who has come waits for memory."""
        now = time.monotonic()
        quiet = [g for g in self._groups.values() if not g.live and g.name not in self._line]
        for group in [g for g in quiet if g.held_until <= now]:
            self._end(group)

    def _end(self, group: _Group) -> None:
        """All rows have finished: their blocks go back, and the name is free again."""
        for request_id, waiting in group.rows.items():
            del self._rows[request_id]
            self._free_blocks(waiting.request)
        del self._groups[group.name]
        self._ended.append(group.number)


class HogwildScheduler(GroupScheduling):
    """For steps that are scheduled one at a time."""


class HogwildAsyncScheduler(GroupScheduling, AsyncScheduler):  # type: ignore[misc]
    """For steps that are scheduled while the one before still runs."""


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        raise UsageError(f"{WAIT} is {text!r}; it must be a number of seconds") from None


def _order(request: Request) -> tuple[int, float]:
    """Who comes first where vLLM has to choose."""
    return request.priority, request.arrival_time


def _pending(request: Request) -> int:
    """Tokens of a running request that are not computed yet."""
    pending: int = (
        request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
    )
    return pending


def _require_alike(other: _Waiting, request: Request, member: Member) -> None:
    """Refuse a row whose group cannot have it; raises `UsageError`.

    Nothing that only the group's own clients know is said: neither its salt nor its tokens.
    """
    row = f"worker {member.worker!r} of group {member.group!r}"
    if request.cache_salt != other.request.cache_salt:
        raise UsageError(
            f"{row} has another cache_salt than its group, or only one of them has one"
        )
    if other.member.worker == member.worker:
        raise UsageError(f"{row} is there already; give each row of a group a name of its own")
    alike: tuple[tuple[str, object, object], ...] = (
        ("hogwild_prefix", member.prefix, other.member.prefix),
        ("hogwild_layout", member.layout, other.member.layout),
        ("LoRA adapter", _lora(request), _lora(other.request)),
    )
    for what, own, theirs in alike:
        if own != theirs:
            raise UsageError(f"{row} has {what} {own!r}, but its group has {theirs!r}")
    mine, its = _prefix(request, member), _prefix(other.request, member)
    if mine != its:
        index = next(i for i, (one, two) in enumerate(zip(mine, its, strict=True)) if one != two)
        raise UsageError(
            f"{row} begins with other tokens than its group: token {index} of the prefix is "
            f"{mine[index]}, the group has another"
        )


def _lora(request: Request) -> str | None:
    return request.lora_request.lora_name if request.lora_request else None


def _prefix(request: Request, member: Member) -> tuple[int, ...]:
    return tuple((request.prompt_token_ids or ())[: member.prefix])


def _joined(group: _Group, waiting: _Waiting) -> Joined:
    request, member = waiting.request, waiting.member
    parameters = request.sampling_params
    assert parameters is not None
    stops = {*(parameters.stop_token_ids or ())}
    if parameters.eos_token_id is not None:
        stops.add(parameters.eos_token_id)
    return Joined(
        request=request.request_id,
        number=group.number,
        member=member,
        prefix=_prefix(request, member),
        prompt=waiting.row.prompt,
        limit=waiting.row.limit,
        stops=frozenset(stops),
    )
