"""Leases of runs: who has one, who loses it when, and that a loss is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tnbench.ablation import leases
from tnbench.ablation.leases import Owner, acquire, holder
from tnbench.records import RunFolder

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="start times are read from /proc")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "suite" / "runs" / "0123456789ab")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this host, which lives until the test ends."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    return replace(leases._self(), pid=process.pid, started=leases._process(process.pid)[1])


def elsewhere() -> Owner:
    """A process on another host; its id is that of a living process here."""
    return replace(leases._self(), host="other-host", boot="other-boot")


def give(folder: RunFolder, owner: Owner, age: float = 0) -> None:
    """Write the lease of `owner`, whose last heartbeat was `age` seconds ago."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.lease.write_text(json.dumps({**asdict(owner), "token": "theirs"}))
    os.utime(folder.lease, (time.time() - age, time.time() - age))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_one_holds_it_until_it_is_released(folder: RunFolder) -> None:
    assert holder(folder) is None
    with acquire(folder) or pytest.fail("not free") as lease:
        assert lease.mine()
        assert holder(folder) == leases._self()
        assert str(holder(folder)).startswith(f"process {os.getpid()} on ")
        assert acquire(folder) is None
    assert holder(folder) is None
    assert not folder.lease.exists()
    with acquire(folder) or pytest.fail("not free"):
        pass


def test_of_many_at_once_one_gets_it(folder: RunFolder) -> None:
    give(folder, elsewhere(), age=61)
    start, found = threading.Barrier(12), []

    def race() -> None:
        start.wait()
        found.append(acquire(folder))

    threads = [threading.Thread(target=race) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [lease for lease in found if lease]
    assert winner.mine()
    assert len(found) == 12
    winner.release()


def test_a_living_process_of_this_host_keeps_it(folder: RunFolder, process: subprocess.Popen[bytes]) -> None:
    """However old its heartbeat: both may have been suspended together."""
    give(folder, owner_of(process), age=10_000)
    assert holder(folder) == owner_of(process)
    assert acquire(folder) is None


@LINUX
def test_a_dead_process_of_this_host_loses_it_at_once(
    folder: RunFolder, process: subprocess.Popen[bytes]
) -> None:
    give(folder, owner := owner_of(process))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert leases._process(process.pid)[0] == "Z"  # dead, though nobody has taken note
    assert holder(folder) is None
    process.wait()
    assert owner.is_gone()
    assert holder(folder) is None
    with acquire(folder) or pytest.fail("not free") as lease:
        assert lease.mine()


@LINUX
def test_a_later_process_of_the_same_id_does_not_keep_it(
    folder: RunFolder, process: subprocess.Popen[bytes]
) -> None:
    owner = owner_of(process)
    assert owner.started is not None
    give(folder, replace(owner, started=owner.started - 1))
    assert holder(folder) is None


@pytest.mark.parametrize("changed", ["host", "boot", "namespace"])
def test_elsewhere_only_a_heartbeat_counts(folder: RunFolder, changed: str) -> None:
    """Another host, another boot, another container: process ids mean nothing."""
    owner = replace(leases._self(), **{changed: "another", "pid": 2**22 + 1})
    give(folder, owner, age=50)
    assert holder(folder) == owner
    assert acquire(folder) is None
    give(folder, owner, age=61)
    assert holder(folder) is None
    with acquire(folder) or pytest.fail("not free") as lease:
        assert lease.mine()


def test_hosts_need_not_agree_on_the_time(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    give(folder, elsewhere(), age=5)
    monkeypatch.setattr(time, "time", lambda: 5e9)
    assert holder(folder) == elsewhere()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"token": 3}'])
def test_a_garbled_lease_ends_like_one_from_elsewhere(folder: RunFolder, text: str) -> None:
    give(folder, elsewhere())
    folder.lease.write_text(text)
    assert str(holder(folder)) == "process 0 on an unknown host"
    assert acquire(folder) is None
    os.utime(folder.lease, (time.time() - 61, time.time() - 61))
    with acquire(folder) or pytest.fail("not free") as lease:
        assert lease.mine()


def test_the_heart_beats(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with acquire(folder) or pytest.fail("not free") as lease:
        for _ in range(2):
            os.utime(folder.lease, (0, 0))
            wait_for(lambda: folder.lease.stat().st_mtime > 1e9)
        assert lease.mine()


def test_a_lost_lease_is_noticed_and_left_alone(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended machine: its clocks have leapt when it wakes up, and another host has the run."""
    with acquire(folder) or pytest.fail("not free") as lease:
        (folder.path / "theirs").write_text(json.dumps({**asdict(elsewhere()), "token": "theirs"}))
        os.utime(folder.path / "theirs", (1e9, 1e9))
        os.replace(folder.path / "theirs", folder.lease)
        assert lease.mine()  # no time has passed in which it could have been lost
        clocks = leases._clocks()
        monkeypatch.setattr(leases, "_clocks", lambda: (clocks[0], clocks[1] + 100))
        assert not lease.mine()
        assert not lease.mine()
    assert folder.lease.stat().st_mtime == 1e9
    assert json.loads(folder.lease.read_text())["token"] == "theirs"


def test_a_waking_process_that_lost_nothing_goes_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acquire(folder) or pytest.fail("not free") as lease:
        os.utime(folder.lease, (1e9, 1e9))
        clocks = leases._clocks()
        monkeypatch.setattr(leases, "_clocks", lambda: (clocks[0] + 100, clocks[1]))
        assert lease.mine()
        assert folder.lease.stat().st_mtime > 1e9


def test_the_heartbeat_notices_a_loss(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with acquire(folder) or pytest.fail("not free") as lease:
        folder.lease.unlink()
        wait_for(lambda: not lease.mine())
    assert not folder.lease.exists()
