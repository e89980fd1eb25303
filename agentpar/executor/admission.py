"""Which of the calls that are ready may start now: places, rates, locks and priority.

Pure: time comes in as an argument. It must never know tasks, references or results; it knows
calls by their number, what each of them takes up, and how urgent it is.

A call takes up a place in the run and in each of its *resources*: its tool, its host, its
lock. Calls that need the same resources wait in one lane, the most urgent first, so deciding
who is next looks at the head of each lane only.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentpar.executor.latency import Latency, Samples
from agentpar.policy import PLAIN, Limits, Policy
from agentpar.resource import NEVER, Resource, host_of


@dataclass(slots=True, eq=False)
class Lane:
    """Calls of one tool that need the same resources, the most urgent first."""

    policy: Policy
    samples: Samples
    resources: tuple[Resource, ...]
    far: Resource | None
    """Whom a word of "too many requests" is about, once there was one."""
    running: int = 0
    urgent: list[float] = field(default_factory=list)
    """Heap of the ranks that calls wait with, each once and negative: the highest comes first."""
    waiting: dict[float, deque[tuple[int, Any]]] = field(default_factory=dict)
    """By negative rank: (turn, call), who came first at the head. Many calls share few ranks."""

    def opens(self, now: float) -> float:
        return max([resource.opens(now) for resource in self.resources], default=now)

    def push(self, rank: float, turn: int, call: Any) -> None:
        calls = self.waiting.get(-rank)
        if calls is None:
            calls = self.waiting[-rank] = deque()
            heapq.heappush(self.urgent, -rank)
        calls.append((turn, call))

    def pop(self) -> Any:
        """The most urgent call, which waits no more."""
        calls = self.waiting[self.urgent[0]]
        _, call = calls.popleft()
        if not calls:
            del self.waiting[heapq.heappop(self.urgent)]
        return call

    def head(self) -> tuple[float, int]:
        """By this, the lane whose first call is the most urgent comes first."""
        rank = self.urgent[0]
        return rank, self.waiting[rank][0][0]

    def empty(self) -> list[tuple[int, Any]]:
        """All that wait, in the order in which they came; they wait no more."""
        left = sorted((entry for calls in self.waiting.values() for entry in calls), key=_turn)
        self.urgent.clear()
        self.waiting.clear()
        return left


def _turn(entry: tuple[int, Any]) -> int:
    return entry[0]


class Admission:
    """The places of one run. A call is any value that the caller can recognise again."""

    def __init__(self, limits: Limits, policies: Mapping[str, Policy], latency: Latency) -> None:
        self._limits = limits
        self.slots = limits.concurrency
        self._policies = policies
        self._latency = latency
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._resources: dict[str, Resource] = {}
        self._by_tool: dict[str, Lane | None] = {}  # None: the lane depends on the arguments
        self.running = 0
        self.waiting = 0
        self._turn = 0

    def lane(self, tool: str, args: Mapping[str, Any]) -> Lane:
        """Where calls of ``tool`` with ``args`` wait."""
        lane = self._by_tool.get(tool)
        return lane if lane is not None else self._lane(tool, args)

    def enter(self, lane: Lane, now: float) -> bool:
        """Whether a call may start now, ahead of nobody; it has then started."""
        if self.waiting or self.running >= self.slots:
            return False
        if not lane.resources:
            self.running += 1
            lane.running += 1
            return True
        if lane.opens(now) > now:
            return False
        self._take(lane, now)
        return True

    def queue(self, call: Any, lane: Lane, rank: float) -> None:
        """``call`` waits for its turn; those of the highest ``rank`` go first."""
        self._turn += 1
        self.waiting += 1
        if (calls := lane.waiting.get(-rank)) is not None:
            calls.append((self._turn, call))
        else:
            lane.push(rank, self._turn, call)

    def next(self, now: float) -> Any | None:
        """The most urgent call that may start now, which has then started; None where there
        is none."""
        if self.running >= self.slots:
            return None
        best: Lane | None = None
        for lane in self._lanes.values():
            if (
                lane.urgent
                and (best is None or lane.head() < best.head())
                and (not lane.resources or lane.opens(now) <= now)
            ):
                best = lane
        if best is None:
            return None
        self.waiting -= 1
        if best.resources:
            self._take(best, now)
        else:
            self.running += 1
            best.running += 1
        return best.pop()

    def opens(self, now: float) -> float:
        """When a waiting call may start although nothing ends before; `NEVER` if not at all."""
        if not self.waiting or self.running >= self.slots:
            return NEVER
        return min((lane.opens(now) for lane in self._lanes.values() if lane.urgent), default=now)

    def release(self, lane: Lane) -> None:
        """A call that had started has ended."""
        self.running -= 1
        lane.running -= 1
        for resource in lane.resources:
            resource.give_back()

    def withdraw(self, call: Any, lane: Lane) -> bool:
        """Take a waiting call out of its lane; whether it was there."""
        for rank, calls in lane.waiting.items():
            for entry in calls:
                if entry[1] is call:
                    calls.remove(entry)
                    if not calls:
                        del lane.waiting[rank]
                        lane.urgent.remove(rank)
                        heapq.heapify(lane.urgent)
                    self.waiting -= 1
                    return True
        return False

    def reorder(self, rank: Callable[[Any], float]) -> None:
        """Sort every lane anew by ``rank``; among equals who came first stays first."""
        for lane in self._lanes.values():
            for turn, call in lane.empty():
                lane.push(rank(call), turn, call)

    def throttled(
        self, lane: Lane, tool: str, now: float, began: float, retry_after: float | None
    ) -> None:
        """The far side of a call that has ended asked for less; all calls to it take heed."""
        if lane.far is None:
            lane.far = self._resource(f"tool {tool}")
            lane.far.running += lane.running
            lane.resources = (*lane.resources, lane.far)
        lane.far.throttled(now, began, retry_after)

    def host_throttled(
        self, host: str, now: float, began: float, retry_after: float | None
    ) -> None:
        """A host asked for less, whatever the tool that was told so: all calls to it take heed."""
        self._host(host).throttled(now, began, retry_after)

    # Inside

    def _take(self, lane: Lane, now: float) -> None:
        self.running += 1
        lane.running += 1
        for resource in lane.resources:
            resource.take(now)

    def _lane(self, tool: str, args: Mapping[str, Any]) -> Lane:
        policy = self._policies.get(tool, PLAIN)
        host = ""
        if policy.host and isinstance(url := args.get(policy.host), str):
            host = host_of(url)  # none where it is no URL: the tool itself will say so
        lane = self._lanes.get((tool, host))
        if lane is None:
            lane = self._lanes[tool, host] = self._new_lane(tool, host, policy)
        if not policy.host:
            self._by_tool[tool] = lane
        return lane

    def _new_lane(self, tool: str, host: str, policy: Policy) -> Lane:
        found: list[Resource] = []
        far = None
        if policy.concurrency is not None or policy.rate is not None:
            far = self._resource(f"tool {tool}", policy.concurrency, policy.rate)
            found.append(far)
        if host:
            far = self._host(host)
            found.append(far)
        if policy.lock:
            found.append(self._resource(f"lock {policy.lock}", 1))
        return Lane(policy, self._latency.of(tool), tuple(found), far)

    def _host(self, host: str) -> Resource:
        return self._resource(f"host {host}", self._limits.per_host, self._limits.host_rate)

    def _resource(self, name: str, slots: int | None = None, rate: float | None = None) -> Resource:
        if name not in self._resources:
            bound = math.inf if slots is None else float(slots)
            self._resources[name] = Resource(name, bound, rate)
        return self._resources[name]
