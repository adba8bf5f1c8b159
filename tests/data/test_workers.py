"""Worker processes of a script that does not parse absl flags."""

import signal
import subprocess
import sys

SCRIPT = """
import time
from lfcc_jax import data

if __name__ == "__main__":
    source = data.open_source("noise_10x8", "train")
    batches = data.train_batches(source, 16, seed=0, workers=2)
    print(next(batches)["label"].shape, flush=True)
    time.sleep(600)
"""


def test_workers_start_in_a_plain_script_and_exit_when_it_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], **pipes) as script:
        line = script.stdout.readline()
        script.send_signal(signal.SIGKILL)
        # All child processes hold these pipes, which close when the last process exits.
        _, errors = script.communicate(timeout=60)
    assert line == "(16,)\n", errors
