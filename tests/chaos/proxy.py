"""What stands between each worker and the server, and between clients and server: sockets that can be cut, be silent,
be closed, or lose an answer.

`python -m tests.chaos.proxy DIRECTORY TARGET LANE ...` listens for each lane in a directory of its name and passes
everything on to the socket TARGET. It reads orders from its standard input, a line of JSON each, and answers each with
the number of connections that were hit. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOCKET = ".s.PGSQL.5432"
ROLES = {b"listen ": "listener", b".beat(": "heartbeat", b".flush(": "scribe", b".claim(": "dispatcher"}
"""What a connection is for is told by the first statement of its kind."""
CHUNK = 1 << 16


class Wire:
    """One connection through the proxy."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.role: str | None = None
        self.drops_the_next_answer = False
        self._ends = (near, far)

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()


class Lane:
    """One way to the server, with its connections."""

    def __init__(self, directory: Path, target: str) -> None:
        directory.mkdir()
        self._path = str(directory / SOCKET)
        self._target = target
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._loses: set[str | None] = set()
        self._lost = 0
        self._wires: set[Wire] = set()

    async def open(self) -> int:
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._connected, self._path)
        return 0

    async def obey(self, order: str, role: str | None) -> int:
        """Do as told; how many connections that hits."""
        hit = [wire for wire in self._wires if role in (None, wire.role)]
        match order:
            case "open":
                return await self.open()
            case "refuse":
                if self._server is not None:
                    self._server.close()
                    self._server = None
                    Path(self._path).unlink(missing_ok=True)
                self._cut(hit)
            case "cut":
                self._cut(hit)
            case "lose answer":
                self._loses.add(role)
            case "lose no more":
                self._loses.discard(role)
            case "say what was lost":
                return self._lost
            case "hush":
                self._flows.clear()
            case "flow":
                self._flows.set()
            case _:
                raise ValueError(order)
        return len(hit)

    @staticmethod
    def _cut(wires: Sequence[Wire]) -> None:
        for wire in wires:
            wire.cut()

    async def _connected(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far_in, far_out = await asyncio.open_unix_connection(self._target)
        except OSError:
            near_out.transport.abort()
            return
        wire = Wire(near_out, far_out)
        self._wires.add(wire)
        try:
            await asyncio.gather(self._ask(wire, near_in, far_out), self._answer(wire, far_in, near_out))
        except OSError:
            pass  # one of the ends is gone
        finally:
            wire.cut()
            self._wires.discard(wire)

    async def _ask(self, wire: Wire, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            if wire.role is None:
                wire.role = next((role for text, role in ROLES.items() if text in chunk), None)
            for lost in {None, wire.role} & self._loses:
                self._loses.discard(lost)
                wire.drops_the_next_answer = True
            await self._flows.wait()
            target.write(chunk)
            await target.drain()
        wire.cut()

    async def _answer(self, wire: Wire, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            await self._flows.wait()
            if wire.drops_the_next_answer:
                self._lost += 1
                break
            target.write(chunk)
            await target.drain()
        wire.cut()


async def serve(directory: Path, target: str, names: Sequence[str]) -> None:
    """Pass on and obey until the input ends."""
    lanes = {name: Lane(directory / name, target) for name in names}
    for lane in lanes.values():
        await lane.open()
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(json.dumps(0), flush=True)
    while line := await orders.readline():
        order = json.loads(line)
        hit = [await lanes[name].obey(order["do"], order["role"]) for name in order["lanes"]]
        print(json.dumps(sum(hit)), flush=True)


class Proxy:
    """The proxy's process. Threads may share it."""

    def __init__(self, directory: Path, target: str, lanes: Sequence[str]) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory), target, *lanes],
            cwd=Path(__file__).parents[2] if __name__.startswith("tests.") else Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def url(self, lane: str, database: str, application: str) -> str:
        """Where a lane leads."""
        host = self._directory / lane
        return f"postgresql://postgres@/{database}?host={host}&port=5432&application_name={application}"

    def order(self, do: str, *lanes: str, role: str | None = None) -> int:
        """Give an order for these lanes' connections, all or those of a role: how many it has hit."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, "lanes": lanes, "role": role}) + "\n")
            self._process.stdin.flush()
            return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> int:
        assert self._process.stdout is not None
        answer: Any = json.loads(self._process.stdout.readline())
        assert isinstance(answer, int)
        return answer


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
