import contextlib
import json
import re
import signal
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from lfcc_jax.errors import UserError
from lfcc_jax.training.workdir import check_same_run, claim_workdir

CONFIG = {"data": {"name": "a"}, "student": {"name": "b", "width": 3}, "losses": {}, "epochs": 1, "batch_size": 8}
INPUTS = {"train": {"examples": 8, "digest": "ab"}, "teacher": {"name": "c", "digest": "cd"}}


def claim(workdir, config=CONFIG, inputs=INPUTS):
    with contextlib.ExitStack() as held:
        return claim_workdir(workdir, config, inputs, held)


def test_claim_workdir_recognizes_the_same_run(tmp_path):
    workdir = claim(tmp_path / "run")
    assert json.loads((workdir / "config.json").read_text()) == CONFIG
    assert json.loads((workdir / "inputs.json").read_text()) == INPUTS
    assert claim(tmp_path / "run", ConfigDict(CONFIG)) == workdir


def test_claim_workdir_accepts_changes_that_do_not_affect_results(tmp_path):
    claim(tmp_path)
    before = (tmp_path / "config.json").read_text()
    data = {"name": "a", "workers": 4}
    claim(tmp_path, CONFIG | {"data": data, "log_every_steps": 7, "checkpoint_every_steps": 9})
    assert (tmp_path / "config.json").read_text() == before
    with pytest.raises(UserError, match=r"config\.eval_every_epochs was unset, now 2; choose another --workdir"):
        claim(tmp_path, CONFIG | {"eval_every_epochs": 2})


def test_claim_workdir_accepts_another_form_of_the_same_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim(tmp_path / "run", CONFIG | {"teacher": {"checkpoint": str(tmp_path / "teacher")}})
    claim(tmp_path / "run", CONFIG | {"teacher": {"checkpoint": "teacher"}})
    for other in ("", "other"):
        with pytest.raises(UserError, match="different run: config.teacher.checkpoint was"):
            claim(tmp_path / "run", CONFIG | {"teacher": {"checkpoint": other}})


def test_claim_workdir_names_every_value_of_a_different_run(tmp_path):
    claim(tmp_path)
    message = r"config\.student\.name was b, now d; config\.student\.width was 3, now unset; choose"
    with pytest.raises(UserError, match=message):
        claim(tmp_path, CONFIG | {"student": {"name": "d"}})


def test_claim_workdir_rejects_another_teacher_at_the_same_path(tmp_path):
    claim(tmp_path)
    with pytest.raises(UserError, match=r"different run: teacher\.digest was cd, now ef"):
        claim(tmp_path, CONFIG, INPUTS | {"teacher": {"name": "c", "digest": "ef"}})
    check_same_run(tmp_path, CONFIG)  # without inputs there is nothing to compare


def test_claim_workdir_rejects_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="`--workdir` must be a directory, but .* is a file"):
            claim(path)


def test_claim_workdir_leaves_checkpoints_of_an_unknown_run_alone(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"config\.json is missing"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("text", ["", '{"seed": ', "[1, 2]", "\x00\xff"])
def test_claim_workdir_names_a_damaged_config_file(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json"))) as error:
        claim(tmp_path)
    assert "\n" not in str(error.value)


HOLDER = """
import contextlib, sys, time
from lfcc_jax.training.workdir import claim_workdir
held = contextlib.ExitStack()
claim_workdir(sys.argv[1], eval(sys.argv[2]), {}, held)
print("claimed", flush=True)
time.sleep(600)
"""


def test_claim_workdir_locks_until_the_run_exits_or_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, repr(CONFIG)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "claimed\n"
    with pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid} on .*\); stop it"):
        claim(tmp_path, inputs={})
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    claim(tmp_path, inputs={})
    claim(tmp_path, inputs={})  # the previous claim released the lock
