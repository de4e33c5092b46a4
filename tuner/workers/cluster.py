"""Workers on the machines of a Ray cluster, behind the face of the driver's own pool.

An actor (`Host`) holds each device. The driver stays the only one that writes and the only one that
charges: what comes over the wire is what a worker on this machine would say, and the checkpoint
that it names; what goes is a trial, its configuration and the checkpoint that it goes on from.

Readings of a node's monotonic clock are turned into readings of the driver's by an offset that is
measured once: half a round trip is how far it can be off, and what the clocks drift apart since.
No reading is taken for later than the driver's own.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tuner.files import CannotWriteError
from tuner.workers.checkpoints import read_files, verify, write_files
from tuner.workers.control import DEADLINE
from tuner.workers.host import Host, Started
from tuner.workers.messages import check
from tuner.workers.pool import PATIENCE_S, PooledWorker, Setup, WorkerPool, WorkerStartError

Heard = tuple[int, PooledWorker, "dict[str, Any] | None"]
"""When by the driver's clock a worker said something, which, and what: None where it died."""

_POLL_S = 5.0  # how long a host waits for something to say before it says nothing
_START_S = 600.0  # data may have to be fetched, and layouts measured
_CLOSE_S = 10.0
_KNOCK_S = 10.0
_SILENT_S = 60.0  # beyond its patience, after which a host that says nothing is given up
_PINGS = 5


@dataclass(frozen=True)
class Place:
    """A device of a cluster: on which node, and how many of its cores are for this device."""

    node: str
    address: str
    kind: str  # cpu or cuda
    cores: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.address}"


def connect(address: str) -> None:
    """Join a Ray cluster: `auto`, `local` for one of this machine alone, or an address.

    This machine is one of its nodes. Raises ValueError where Ray is not installed, or there is no
    cluster.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("a cluster needs Ray: pip install 'tuner[ray]'") from None
    if ray.is_initialized():
        return
    try:
        if address == "auto":  # as Ray takes it, which would wait for it for minutes
            address = os.environ.get("RAY_ADDRESS", address)
        _knock(address)
        with _own_signals():
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT, for which Ray itself waits for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        with socket.create_connection((host, int(port)), timeout=_KNOCK_S):
            pass


def places_of(cluster: str, device: str, device_count: int | None = None) -> list[Place]:
    """The devices of the cluster at an address, which is joined.

    Raises ValueError as `connect` and `find_places` do.
    """
    connect(cluster)
    return find_places(device, device_count)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers, in whose place Ray may put its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python
                signal.signal(number, handler)


def find_places(device: str, device_count: int | None) -> list[Place]:
    """The devices of the cluster that `auto`, `cpu` or `cuda` stands for.

    Raises ValueError where it is none of these, or there are not so many.
    """
    import ray

    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"on a cluster a device is auto, cpu or cuda, got {device!r}")
    listed: Any = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node for node in listed if node["Alive"]]
    found: dict[str, list[Place]] = {"cuda": [], "cpu": []}
    for node in sorted(nodes, key=lambda n: (n["NodeManagerAddress"], n["NodeID"])):
        name, address, has = node["NodeID"], node["NodeManagerAddress"], node["Resources"]
        gpus, cores = int(has.get("GPU", 0)), has.get("CPU", 0)
        found["cuda"] += [Place(name, address, "cuda", cores / max(1, gpus))] * gpus
        if cores >= 1:
            found["cpu"].append(Place(name, address, "cpu", cores))
    places = found["cuda"] or found["cpu"] if device == "auto" else found[device]
    if not places or len(places) < (device_count or 0):
        raise ValueError(
            f"the cluster has {len(found['cuda'])} GPUs and {len(found['cpu'])} nodes with a CPU: "
            f"not {device_count or 1} for {device!r}"
        )
    return places[:device_count]


class RayPool(WorkerPool):
    """The worker processes of a cluster: on each device a host with so many.

    Args:
        setup: what the workers are; its devices are this machine's, and play no part.
        places: the devices of the cluster.
        per_device: workers on each.
    """

    def __init__(self, setup: Setup, places: list[Place], per_device: int = 1) -> None:
        names = tuple(f"{place.kind}:{i} at {place.address}" for i, place in enumerate(places))
        super().__init__(replace(setup, devices=names), per_device)
        self._places = places
        self._hosts: list[Any] = []
        self._held_since: list[int] = []  # of each device, by the monotonic clock
        self._offsets: list[int] = []
        self._polls: dict[Any, int] = {}  # by the future of each, the device
        self._asked_at: dict[int, float] = {}  # of each device's poll, by the monotonic clock
        self._end_of_all: WorkerStartError | None = None  # once no device is left
        # Of the control blocks of a device's workers, in a life of theirs; not sent yet.
        self._changes: dict[tuple[int, int, int], dict[int, int]] = {}

    def start(self) -> int:
        """Have a host hold each device, and wait until all workers are ready.

        Returns the device time that took, in ns: of each from when its host was started. Raises
        WorkerStartError, or the ValueError that a host's pool did.
        """
        self._start_all()
        now = time.monotonic_ns()
        return sum(now - since for since in self._held_since)

    def _start_all(self) -> None:
        self._start_hosts(self._places, partial(WorkerPool, per_device=self._per_device))

    def _start_hosts(
        self, places: Sequence[Place], make: Callable[[Setup], WorkerPool]
    ) -> list[Any]:
        """Start hosts on these places, the next ones; what the pool of each measured."""
        import ray

        actor, first = ray.remote(Host), len(self._hosts)
        for place in places:
            self._hosts.append(_options(actor, place).remote(make, _setup_at(place, self.setup)))
        starting, paces = [], []
        for device, host in enumerate(self._hosts[first:], first):
            try:
                self._offsets.append(_offset(host))
            except (ray.exceptions.RayError, TimeoutError) as error:
                raise WorkerStartError(
                    f"{self.setup.devices[device]} was not to be had: others may use it ({error})"
                ) from error
            # What somebody else uses until now nobody pays for here.
            self._held_since.append(time.monotonic_ns())
            starting.append(host.start.remote())
        for device, future in enumerate(starting, first):
            try:
                said: Started = ray.get(future, timeout=_START_S)
            except (ray.exceptions.RayError, TimeoutError) as error:
                cause = getattr(error, "cause", None) or error
                kind = ValueError if isinstance(cause, ValueError) else WorkerStartError
                logs = self.setup.directory / f"device-{device}-worker-*.log"
                raise kind(
                    f"the host of {self.setup.devices[device]} does not start: {cause}; what its "
                    f"workers printed is kept as {logs}"
                ) from error
            for place_in_host, ready in enumerate(said.ready):
                self.workers.append(self._proxy(device, place_in_host, ready))
            self._listen(device)
            paces.append(said.pace)
        return paces

    def _proxy(self, device: int, place_in_host: int, ready: dict[str, Any]) -> PooledWorker:
        """A worker that is ready, as the driver sees it."""
        nothing: Any = None
        block: Any = _RemoteBlock(self, device, place_in_host)
        return PooledWorker(
            len(self.workers), device, nothing, nothing, block, is_ready=True, ready=ready
        )

    def messages(self) -> Iterator[tuple[PooledWorker, dict[str, Any] | None]]:
        """What workers said within a moment, oldest first; None where one died."""
        import ray

        if self._end_of_all is not None:  # all that was said before has been heard
            raise self._end_of_all
        self._flush()
        heard: list[Heard] = []
        done, _ = ray.wait(list(self._polls), num_returns=1, timeout=PATIENCE_S)
        more, _ = ray.wait(list(self._polls), num_returns=len(self._polls), timeout=0)
        for poll in {*done, *more}:
            device = self._polls.pop(poll)
            try:
                said = ray.get(poll)
            except (ray.exceptions.RayError, WorkerStartError) as error:
                heard += self._bury(device, error)
                continue
            self._listen(device)
            heard += [self._understand(device, *one) for one in said]
        heard += self._bury_the_silent()
        heard.sort(key=lambda item: item[0])
        return ((worker, message) for _, worker, message in heard)

    def _listen(self, device: int) -> None:
        self._polls[self._hosts[device].poll.remote(_POLL_S)] = device
        self._asked_at[device] = time.monotonic()

    def _bury_the_silent(self) -> list[Heard]:
        """Give up hosts that stopped answering: nobody else watches over them."""
        import ray

        last = time.monotonic() - _POLL_S - _SILENT_S
        silent = [poll for poll, device in self._polls.items() if self._asked_at[device] < last]
        if not silent:
            return []
        # Where this process was away itself the answers lie there.
        _, silent = ray.wait(silent, num_returns=len(silent), timeout=0)
        heard: list[Heard] = []
        for poll in silent:
            device = self._polls.pop(poll)
            ray.kill(self._hosts[device])
            heard += self._bury(device, TimeoutError(f"it said nothing for {_SILENT_S:.0f} s"))
        return heard

    def _understand(
        self, device: int, index: int, message: dict[str, Any], files: Mapping[str, bytes]
    ) -> Heard:
        """What a worker said, by the driver's clock, its checkpoint on the driver's disk.

        Where the disk here refuses it that is what the worker is taken to have said.
        """
        worker = self._workers_of(device)[index]
        at = min(int(message["at"]) - self._offsets[device], time.monotonic_ns())
        if message["is"] == "died":
            worker.last_words, worker.is_hung = str(message["reason"]), bool(message["hung"])
            return at, worker, None
        check(message)
        if message["is"] == "unwritable":
            where = f"{message['path']} on the node of {self.setup.devices[device]}"
            message = {**message, "path": where}
        if message.get("checkpoint"):
            name, sha256 = message["checkpoint"]
            try:
                write_files(self.setup.directory, name, files)
            except CannotWriteError as error:
                why = {"path": str(error.path), "number": error.number, "reason": error.reason}
                return at, worker, {"is": "unwritable", "at": at, **why}
            verify(self.setup.directory / name, sha256)
        return at, worker, {**message, "at": at}

    def _bury(self, device: int, error: Exception) -> list[Heard]:
        """A host is gone, with its workers, and mostly with the node that it was on."""
        self.lost.add(device)
        lines = str(error).strip().splitlines()
        reason = f"{self.setup.devices[device]} is gone: {lines[0] if lines else error}"
        if len(self.lost) == len(self.setup.devices):
            lost = f"no device of the cluster is left; the last: {reason}"
            self._end_of_all = WorkerStartError(lost)
        for worker in self._workers_of(device):
            worker.last_words = reason
        return [(time.monotonic_ns(), worker, None) for worker in self._workers_of(device)]

    def _workers_of(self, device: int) -> list[PooledWorker]:
        return [worker for worker in self.workers if worker.device == device]

    def cause_of_death(self, worker: PooledWorker) -> str:
        """What its host said of it, or why the host says nothing more."""
        return worker.last_words

    def restart(self, worker: PooledWorker) -> bool:
        """Its host has started another already; False where the host is gone too."""
        worker.is_ready, worker.jobs, worker.last_words = False, {}, ""
        worker.busy_since, worker.is_hung = None, False
        block: Any = worker.block
        block.life += 1
        if worker.device in self.lost:
            self.workers = [other for other in self.workers if other is not worker]
            return False
        self._change(worker.device, block, DEADLINE, worker.block.words[DEADLINE])
        return True

    def tell(self, worker: PooledWorker, order: dict[str, Any]) -> None:
        """Send an order, and the checkpoint that it goes on from."""
        self._flush()
        files = {}
        if order["from"] is not None:
            files = self._read(order["from"][0])
        block: Any = worker.block
        self._hosts[worker.device].give.remote(block.index, block.life, order, files)

    def _read(self, name: str) -> dict[str, bytes]:
        try:
            return read_files(self.setup.directory / name)
        except (OSError, ValueError):
            return {}  # the host says that it did not come along, and the trial is interrupted

    def close(self) -> None:
        """End all workers, and give the devices back to the cluster."""
        import ray

        closing = [host.close.remote() for host in self._hosts]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for device, (host, logs) in enumerate(zip(self._hosts, closing, strict=True)):
            with suppress(ray.exceptions.RayError):  # one that is gone has none left
                for index, text in ray.get(logs, timeout=0).items():
                    name = f"device-{device}-worker-{index}.log"
                    with (
                        suppress(OSError),  # a disk that is full has its say elsewhere
                        open(self.setup.directory / name, "a") as file,
                    ):
                        file.write(text)
            ray.kill(host)
        self._hosts.clear()
        self._polls.clear()
        self.workers.clear()

    def _change(self, device: int, block: _RemoteBlock, word: int, value: int) -> None:
        """Note a change of a control block; sent with what is done next, as from a signal."""
        if word == DEADLINE:
            value = min(value + self._offsets[device], (1 << 63) - 1)
        self._changes.setdefault((device, block.index, block.life), {})[word] = value

    def _flush(self) -> None:
        changes, self._changes = self._changes, {}
        for (device, index, life), words in changes.items():
            if device not in self.lost:
                self._hosts[device].set_words.remote(index, life, words)


class _RemoteBlock:
    """A worker's control block, which is on another machine.

    Attributes:
        index: of the worker, on its host.
        life: how often the worker was started anew, as far as the driver knows.
    """

    def __init__(self, pool: RayPool, device: int, index: int) -> None:
        self.index, self.life, self.fd = index, 0, -1
        self.words = _RemoteWords(pool, device, self)


class _RemoteWords(dict[int, int]):
    """The words of a remote block as they were last set here; nobody asks for the worker's own."""

    def __init__(self, pool: RayPool, device: int, block: _RemoteBlock) -> None:
        super().__init__({DEADLINE: (1 << 63) - 1})
        self._pool, self._device, self._block = pool, device, block

    def __setitem__(self, word: int, value: int) -> None:
        super().__setitem__(word, value)
        self._pool._change(self._device, self._block, word, value)


def _options(actor: Any, place: Place) -> Any:
    """The actor of a host, which takes the place whole."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    is_gpu = place.kind == "cuda"
    return actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        max_concurrency=2,
        num_gpus=1 if is_gpu else 0,
        num_cpus=0 if is_gpu else place.cores,
    )


def _setup_at(place: Place, setup: Setup) -> Setup:
    """What the workers of a place are: its only device is the first that they see."""
    name = "cuda:0" if place.kind == "cuda" else "cpu"
    return replace(setup, devices=(name,), cores=max(1, int(place.cores)))


def _offset(host: Any) -> int:
    """By how much a host's clock is ahead of ours, in ns: of a few round trips, the shortest's."""
    import ray

    found = []
    for _ in range(_PINGS):
        sent = time.monotonic_ns()
        theirs = ray.get(host.now.remote(), timeout=_START_S)
        back = time.monotonic_ns()
        found.append((back - sent, theirs - (sent + back) // 2))
    shortest: tuple[int, int] = min(found)
    return shortest[1]
