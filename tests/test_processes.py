"""Child processes: readiness, failures, and no orphans, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentgpt_remote.errors import ChildProcessFailed, RemoteTimeout
from agentgpt_remote.processes import ChildProcess
from tests.support import is_running, wait_until

CHILD = """
import os, sys, threading
from agentgpt_remote.processes import read_payload, report_ready, watch_parent
payload = read_payload()
print("a line before")
report_ready(payload=payload.decode(), pid=os.getpid(), variable=os.environ.get("OF_THE_CHILD"))
gone = threading.Event()
watch_parent(gone.set)
print("a line after")
gone.wait(60)
"""


def test_child_process_gets_its_payload_and_reports_ready() -> None:
    with ChildProcess.start(["-c", CHILD], b"hello", env={"OF_THE_CHILD": "x"}) as child:
        assert child.ready == {"payload": "hello", "pid": child.pid, "variable": "x"}
        assert child.poll() is None
        wait_until(lambda: "a line after" in child.log_tail())
        assert "a line before" in child.log_tail()
    assert child.poll() is not None


def test_child_process_close_is_idempotent() -> None:
    child = ChildProcess.start(["-c", CHILD])
    child.close()
    child.close()
    assert child.poll() is not None
    assert child.log_tail() == ""


def test_child_process_that_fails_early_shows_its_traceback() -> None:
    with pytest.raises(ChildProcessFailed, match=r"(?s)ended before it was ready .exit code 1.*ZeroDivisionError"):
        ChildProcess.start(["-c", "import sys; sys.stdin.buffer.read(8); 1 / 0"])


def test_child_process_that_is_never_ready_is_ended() -> None:
    code = "import os, sys, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(RemoteTimeout, match="not ready within") as late:
        ChildProcess.start(["-c", code], ready_timeout_s=1.0)
    pid = int(str(late.value).rpartition("pid ")[2].split()[0])
    assert not is_running(pid)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_child_process_ends_when_its_parent_is_killed(end: signal.Signals) -> None:
    parent_code = (
        "from agentgpt_remote.processes import ChildProcess\n"
        f"child = ChildProcess.start(['-c', {CHILD!r}])\n"
        "print(child.pid, flush=True)\n"
        "child.wait(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(end)
        parent.wait(10)
        wait_until(lambda: not is_running(pid))


def test_child_process_ends_with_the_interpreter_that_forgot_it() -> None:
    code = f"from agentgpt_remote.processes import ChildProcess\nprint(ChildProcess.start(['-c', {CHILD!r}]).pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    wait_until(lambda: not is_running(int(done.stdout)))


def test_child_process_is_ready_after_a_line_that_something_else_left_unfinished() -> None:
    code = CHILD.replace('"a line before"', "'agentgpt-ready {', 'half a line', sep=chr(10), end=''")
    with ChildProcess.start(["-c", code], b"hello", ready_timeout_s=10.0) as child:
        assert child.ready["payload"] == "hello"
        wait_until(lambda: "half a line" in child.log_tail())


def test_child_process_ends_though_what_it_started_keeps_its_output_open() -> None:
    started = "import subprocess; other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    code = f"import sys; {started}\n{CHILD}".replace("pid=os.getpid()", "pid=other.pid")
    child = ChildProcess.start(["-c", code])
    before = time.monotonic()
    child.close()
    assert time.monotonic() - before < 10.0
    assert is_running(child.ready["pid"])
    os.kill(child.ready["pid"], signal.SIGKILL)


def test_child_process_has_an_empty_standard_input_once_it_watches_its_parent() -> None:
    code = CHILD.replace('print("a line after")', 'print("read", repr(sys.stdin.read()))')
    with ChildProcess.start(["-c", code]) as child:
        wait_until(lambda: "read ''" in child.log_tail())
        assert child.poll() is None
