"""Receipts: what the writer of a tail says of each append, before it writes it and after.

    evocluster-receipts 1 BOOT CHECK            the boot of the machine that writes
    begin START END SHA256 CHECK                bytes START to END of the tail are about to be written
    kept CHECK                                  they are, and the append was acknowledged
    synced CHECK                                the same, and everything so far has survived an fsync
    boot BOOT CHECK                             another sitting, perhaps after a reboot

Arrow IPC has no checksum, so the sha256 of each record stands here; CHECK is a digest of the line and of all lines
before it. With both files any one fault is told from a crash: a `begin` without `kept` may lack its bytes (the process
died in between, the append was never acknowledged), a `kept` may not. Only a machine that has been booted since may
have lost the bytes of `kept` appends after the last `synced`: by a loss of power, which takes a second at most.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from evocluster.errors import RunDamaged
from evocluster.store.files import write_atomic, write_whole

_HEAD = "evocluster-receipts 1"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot() -> str:
    """A name of this boot of this machine; 'unknown' where the system does not tell."""
    try:
        return _BOOT.read_text(encoding="ascii").strip() or "unknown"
    except OSError:
        return "unknown"


@dataclass
class Receipt:
    """One append."""

    start: int
    end: int
    digest: str
    kept: bool = False
    synced: bool = False
    line_end: int = 0
    """Bytes of the receipts up to the end of its last line."""


@dataclass
class Told:
    """Everything a file of receipts says."""

    boot: str
    """Empty where not even the first line is whole."""
    receipts: list[Receipt] = field(default_factory=list)
    size: int = 0
    """Bytes of whole lines; what follows was cut off in writing."""
    chain: str = ""

    @property
    def rebooted(self) -> bool:
        """Whether the machine may have lost power since the last append."""
        return self.boot == "unknown" or self.boot != boot()


def _check(chain: str, said: str) -> str:
    return sha256(f"{chain} {said}".encode()).hexdigest()[:16]


def read(path: Path) -> Told:
    """Raises: RunDamaged when a line is not as it was written; OSError."""
    content = path.read_bytes().rstrip(b"\0")
    told = Told("")
    for number, raw in enumerate(content.splitlines(keepends=True), 1):
        line = raw.decode(errors="replace")
        said, _, check = line.removesuffix("\n").rpartition(" ")
        if not line.endswith("\n") and told.size + len(raw) == len(content):
            break  # a line cut off in writing
        if check != _check(told.chain, said) or not _take(told, said, told.size + len(raw)):
            raise damaged(path, f"line {number} is not as it was written")
        told.chain, told.size = check, told.size + len(raw)
    return told


def _take(told: Told, said: str, end: int) -> bool:
    """Take a line whose check fits; False when it cannot stand where it does."""
    words = said.split(" ")
    last = told.receipts[-1] if told.receipts else None
    if not told.size:
        told.boot = words[-1]
        return said == f"{_HEAD} {told.boot}"
    if words[0] == "boot":
        told.boot = words[1]
    elif words[0] == "begin":
        told.receipts.append(Receipt(int(words[1]), int(words[2]), words[3]))
    elif last is not None:
        last.kept, last.synced = True, words[0] == "synced"
    if told.receipts:
        told.receipts[-1].line_end = end
    return True


def damaged(path: Path, why: str) -> RunDamaged:
    """The error to raise when a tail and its receipts do not agree."""
    return RunDamaged(
        f"{str(path)!r} is not as it was written: {why}; restore the tail and its .receipts from a copy, or start a "
        "new run in another folder"
    )


class Verdict(NamedTuple):
    """What of a tail is good."""

    end: int
    """Bytes from the start."""
    receipts: int
    """Receipts they belong to."""
    lost: int
    """Acknowledged appends that a loss of power took."""


def judge(content: bytes, told: Told, tail: Path) -> Verdict:
    """Compare a tail with its receipts.

    Raises: RunDamaged for everything that neither a crash of the writer nor a loss of power explains.
    """
    if not told.boot:
        raise damaged(tail, "the first line of its receipts is missing")
    end = 0
    for number, receipt in enumerate(told.receipts):
        record = content[receipt.start : receipt.end]
        whole = receipt.start == end and sha256(record).hexdigest() == receipt.digest
        if not whole:
            return _broken(content, told, tail, number, end)
        end = receipt.end
    if content[end:].strip(b"\0") and not told.rebooted:
        raise damaged(tail, f"{len(content) - end} bytes after byte {end} have no receipt")
    return Verdict(end, len(told.receipts), 0)


def _broken(content: bytes, told: Told, tail: Path, number: int, end: int) -> Verdict:
    """The receipt `number` does not fit what is at byte `end`."""
    rest = told.receipts[number:]
    acknowledged = [receipt for receipt in rest if receipt.kept]
    cut = len(content.rstrip(b"\0")) < rest[-1].end
    if not acknowledged and cut:
        return Verdict(end, number, 0)
    if cut and told.rebooted and not any(receipt.synced for receipt in rest):
        return Verdict(end, number, len(acknowledged))
    if len(content) < rest[-1].end:
        raise damaged(
            tail, f"it ends at byte {len(content)}, {len(acknowledged)} acknowledged append(s) after byte {end} are cut"
        )
    raise damaged(tail, f"the record at byte {end} does not fit its digest")


class Receipts:
    """The writer. Call order: `create` or `go_on`, then `begin` and `done` (or `take_back`) for each append, close."""

    def __init__(self, handle: int, size: int, chain: str) -> None:
        """Use `create` or `go_on`."""
        self._handle = handle
        self._size = size
        self._chain = chain
        self._before = (size, chain)

    @classmethod
    def create(cls, path: Path) -> Receipts:
        """A new file, whose first line survives a loss of power. Raises: OSError, also when there is one."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            made = cls(handle, 0, "")
            made._say(f"{_HEAD} {boot()}")
            os.fsync(handle)
        except BaseException:
            os.close(handle)
            raise
        return made

    @classmethod
    def go_on(cls, path: Path, told: Told, count: int) -> Receipts:
        """Go on after the first `count` receipts, one at least, of a file that was read. Raises: OSError."""
        handle = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            size = told.size if count == len(told.receipts) else told.receipts[count - 1].line_end
            os.ftruncate(handle, size)
            lines = os.pread(handle, size, 0).decode().splitlines()
            made = cls(handle, size, lines[-1].rpartition(" ")[2])
            if not told.receipts[count - 1].kept:
                made._say("kept")
            if told.boot != boot():
                made._say(f"boot {boot()}")
            os.fsync(handle)
        except BaseException:
            os.close(handle)
            raise
        return made

    def begin(self, start: int, payload: bytes) -> None:
        """Say what is about to be written at `start`. Raises: OSError; nothing was said then."""
        self._before = (self._size, self._chain)
        self._say(f"begin {start} {start + len(payload)} {sha256(payload).hexdigest()}")

    def done(self, *, synced: bool) -> None:
        """Say that it was written; `synced`: after an fsync of the tail, and this is synced too. Raises: OSError."""
        self._say("synced" if synced else "kept")
        if synced:
            os.fsync(self._handle)

    def take_back(self) -> None:
        """Unsay the append that was begun last. Raises: OSError."""
        size, chain = self._before
        os.ftruncate(self._handle, size)
        self._size, self._chain = size, chain

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _say(self, said: str) -> None:
        check = _check(self._chain, said)
        line = f"{said} {check}\n".encode()
        write_whole(self._handle, line, self._size)
        self._size += len(line)
        self._chain = check


def adopt(path: Path, content: bytes) -> None:
    """Receipts for the whole tail of an earlier version, as one append. Raises: StoreError."""
    lines, chain = [], ""
    for said in (f"{_HEAD} {boot()}", f"begin 0 {len(content)} {sha256(content).hexdigest()}", "synced"):
        chain = _check(chain, said)
        lines.append(f"{said} {chain}\n")
    write_atomic(path, "".join(lines))
