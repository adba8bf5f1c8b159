import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax.errors import UserError
from lfcc_jax.training.checkpoint import Checkpoints


def state(step):
    return {"w": jnp.full((64, 64), float(step)), "key": jax.random.key(step), "nothing": None}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def saved(directory, accuracies):
    checkpoints = Checkpoints(directory)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, state(step), {"next_index": step}, None if accuracy is None else {"accuracy": accuracy})
    checkpoints.close()
    return Checkpoints(directory)


def damage(directory):
    """Cuts every data file in half, as a full disk would."""
    for file in directory.rglob("d/*"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def test_state_and_data_come_back_bit_for_bit(tmp_path):
    restored, data = saved(tmp_path / "c", {3: None}).restore(abstract())
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    np.testing.assert_array_equal(*map(jax.random.key_data, (restored["key"], state(3)["key"])))
    assert data == {"next_index": 3}


def test_there_may_be_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(abstract()) is None


def test_the_last_two_and_the_best_are_kept(tmp_path):
    saved(tmp_path / "c", {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: None})
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == [2, 5, 6]


def test_a_truncated_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    damage(tmp_path / "c" / "2")
    restored, data = checkpoints.restore(abstract())
    assert (float(restored["w"][0, 0]), data) == (1.0, {"next_index": 1})
    assert "checkpoint 2 is damaged" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "2").exists()
    # The run will come to step 2 again, and must be able to save it.
    checkpoints.save(2, state(2), {"next_index": 2})
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").restore(abstract())[1] == {"next_index": 2}


def test_it_is_an_error_if_no_checkpoint_can_be_read(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    damage(tmp_path / "c")
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] in .* can be read"):
        checkpoints.restore(abstract())
    assert not (tmp_path / "damaged").exists()


def test_a_state_of_another_structure_is_no_damage_and_nothing_is_moved(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] .* can be read; the newest: "):
        checkpoints.restore({"v": abstract()["w"]})
    assert checkpoints.restore(abstract())[1] == {"next_index": 2}


def test_saves_that_fail_are_one_line_with_the_last_step(tmp_path):
    # Files above a limit fail like those on a full disk. In a process of its own, whose files stay limited.
    program = f"""
import resource
import jax.numpy as jnp
from lfcc_jax import models
from lfcc_jax.errors import UserError
from lfcc_jax.training.checkpoint import Checkpoints

checkpoints = Checkpoints({str(tmp_path)!r} + "/checkpoints")
state = {{"w": jnp.arange(20_000.0), "b": jnp.ones(3)}}
checkpoints.save(1, state, {{}})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for save in (
    lambda: checkpoints.save(2, state, {{}}),
    checkpoints.wait,
    checkpoints.close,
    lambda: models.save({str(tmp_path)!r} + "/student", state, {{}}),
):
    try:
        save()
    except UserError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert f"cannot save to {tmp_path}/checkpoints: File too large; the last checkpoint is of step 1" in lines
    assert lines[-1] == f"cannot write {tmp_path}/student: File too large"
    assert len(lines) <= 4
    assert not found.stderr
