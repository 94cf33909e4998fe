"""The first signal asks, the second ends the process, and old handlers come back."""

import os
import signal
import subprocess
import sys
import threading

from tinydiffusion.runtime.signals import StopRequest

CAUGHT = (*StopRequest.ENDS, *StopRequest.SAVES)
SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tinydiffusion.runtime.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGINT"
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("still here")
"""


def test_the_first_signal_is_remembered_and_handlers_are_restored():
    before = [signal.getsignal(number) for number in CAUGHT]
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == "SIGTERM"
    assert [signal.getsignal(number) for number in CAUGHT] == before


def test_the_second_signal_exits_at_once(pytestconfig):
    command = [sys.executable, "-c", SCRIPT, str(pytestconfig.rootpath)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 128 + signal.SIGTERM
    assert "SIGINT: finishing the step" in finished.stderr


def test_outside_the_main_thread_nothing_happens():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
