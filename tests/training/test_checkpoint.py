import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lfcc_jax.errors import UserError
from lfcc_jax.training.checkpoint import Checkpoints


def state(step):
    key = jax.random.key(step)
    return {"w": jax.random.normal(key, (64, 64)), "key": key, "nothing": None}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


def saved(directory, accuracies):
    """Saves a checkpoint for each step, and reopens the directory, as a resumed run does."""
    checkpoints = Checkpoints(directory)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, state(step), {"next_index": step}, accuracy)
    checkpoints.close()
    return Checkpoints(directory)


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def truncate(directory):
    """Truncates every data file to half its size."""
    for file in directory.rglob("d/*"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])


def flip_a_bit(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def test_restore_returns_state_and_record_bit_for_bit(tmp_path):
    restored, about = saved(tmp_path / "c", {3: None}).restore(abstract(), 9)
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    np.testing.assert_array_equal(*map(jax.random.key_data, (restored["key"], state(3)["key"])))
    assert about == {"next_index": 3}


def test_restore_returns_none_without_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "c").restore(abstract(), 9) is None


def test_save_keeps_the_last_two_and_the_best_checkpoint(tmp_path):
    saved(tmp_path / "c", {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: None})
    assert steps_in(tmp_path / "c") == [2, 5, 6]


def test_best_checkpoint_is_kept_after_a_resume(tmp_path):
    saved(tmp_path / "c", {1: 0.5, 2: 0.9, 3: None, 4: 0.6}).close()
    saved(tmp_path / "c", {5: None, 6: 0.7}).close()
    assert steps_in(tmp_path / "c") == [2, 5, 6]
    saved(tmp_path / "c", {7: 0.4, 8: None}).close()
    assert steps_in(tmp_path / "c") == [2, 7, 8]
    saved(tmp_path / "c", {9: 0.95, 10: None, 11: None}).close()
    assert steps_in(tmp_path / "c") == [9, 10, 11]


def test_restore_sets_a_truncated_checkpoint_aside_and_uses_the_one_before(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    truncate(tmp_path / "c" / "2")
    restored, about = checkpoints.restore(abstract(), 9)
    np.testing.assert_array_equal(restored["w"], state(1)["w"])
    assert about == {"next_index": 1}
    assert "checkpoint 2 is damaged" in capsys.readouterr().out
    assert (tmp_path / "damaged" / "2").exists()
    # The run reaches step 2 again and must be able to save it.
    checkpoints.save(2, state(2), {"next_index": 2})
    checkpoints.close()
    assert Checkpoints(tmp_path / "c").restore(abstract(), 9)[1] == {"next_index": 2}


def test_restore_detects_a_flipped_bit_and_names_the_array(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    file = max((tmp_path / "c" / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    assert file.stat().st_size > 64 * 64 * 3  # most of it is `w`, which does not compress
    flip_a_bit(file, file.stat().st_size // 2)
    restored, _ = checkpoints.restore(abstract(), 9)
    np.testing.assert_array_equal(restored["w"], state(1)["w"])
    assert f"checkpoint 2 is damaged and was moved to {tmp_path / 'damaged'}: w differs" in capsys.readouterr().out


def test_restore_detects_arrays_of_another_state(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None, 3: None})
    shutil.rmtree(tmp_path / "c" / "3" / "state")
    shutil.copytree(tmp_path / "c" / "2" / "state", tmp_path / "c" / "3" / "state")
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 2}
    assert "key (and 1 more) differs from what was saved" in capsys.readouterr().out


def test_restore_detects_a_changed_record(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    file = tmp_path / "c" / "2" / "record" / "metadata"
    text = file.read_text()
    assert '"next_index": 2' in text
    file.write_text(text.replace('"next_index": 2', '"next_index": 3'))
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 1}
    assert "its record differs from what was saved" in capsys.readouterr().out


def test_restore_sets_a_checkpoint_with_nan_aside(tmp_path, capsys):
    checkpoints = saved(tmp_path / "c", {1: None})
    checkpoints.save(2, state(2) | {"w": state(2)["w"].at[3, 5].set(jnp.nan)}, {"next_index": 2})
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 1}
    assert "w contains NaN or infinity" in capsys.readouterr().out


def test_restore_raises_if_every_checkpoint_is_damaged(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    truncate(tmp_path / "c")
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] in .* can be used"):
        checkpoints.restore(abstract(), 9)
    assert not (tmp_path / "damaged").exists()


def test_restore_rejects_a_state_of_another_structure_and_moves_nothing(tmp_path):
    checkpoints = saved(tmp_path / "c", {1: None, 2: None})
    with pytest.raises(UserError, match=r"none of the checkpoints \[2, 1\] .* can be used; the newest: "):
        checkpoints.restore({"v": abstract()["w"]}, 9)
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 2}


def test_failed_saves_raise_one_line_with_the_last_step(tmp_path):
    # Writes beyond the limit fail as on a full disk. In a subprocess, because the limit cannot be lifted.
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert f"cannot save to {tmp_path}/checkpoints: File too large; the last checkpoint is at step 1" in lines
    assert lines[-1] == f"cannot write {tmp_path}/student: File too large"
    assert len(lines) <= 4
    # TensorStore's aborted writes may report to an event loop that is closed by then.
    assert not done.stderr or done.stderr.endswith("RuntimeError: Event loop is closed\n")


def test_restore_rejects_a_checkpoint_after_the_last_step(tmp_path):
    saved(tmp_path / "c", {1: None, 2: None})
    (tmp_path / "c" / "7777").mkdir()
    with pytest.raises(UserError, match=r"7777 is after the last step of this run, 9") as error:
        Checkpoints(tmp_path / "c").restore(abstract(), 9)
    assert "\n" not in str(error.value)


def test_restore_sets_a_copied_checkpoint_aside_and_the_run_can_save(tmp_path, capsys):
    saved(tmp_path / "c", {1: None, 2: None})
    shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "7")
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 2}
    assert "checkpoint 7 is damaged and was moved" in capsys.readouterr().out
    checkpoints.save(3, state(3), {"next_index": 3})
    checkpoints.close()
    assert 3 in steps_in(tmp_path / "c")


def test_save_rejects_a_step_before_the_newest_checkpoint(tmp_path):
    checkpoints = saved(tmp_path / "c", {5: None})
    with pytest.raises(UserError, match="cannot save step 4: .* already contains step 5"):
        checkpoints.save(4, state(4), {})


@pytest.mark.parametrize("name", ["notes", "3.orbax-checkpoint-tmp-123", "-3", "0x7", "٣", "3.5"])
def test_checkpoints_ignore_other_directories_and_files(tmp_path, name):
    saved(tmp_path / "c", {1: None, 2: None}).close()
    (tmp_path / "c" / name).mkdir()
    (tmp_path / "c" / "README").write_text("4")
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.restore(abstract(), 9)[1] == {"next_index": 2}
    checkpoints.save(3, state(3), {"next_index": 3})
    checkpoints.close()
    assert 3 in steps_in(tmp_path / "c")


def test_checkpoints_delete_what_an_interrupted_save_left_before_they_return(tmp_path):
    saved(tmp_path / "c", {1: None}).close()
    unfinished = tmp_path / "c" / "2.orbax-checkpoint-tmp" / "state"
    unfinished.mkdir(parents=True)
    (unfinished / "data").write_text("half")
    Checkpoints(tmp_path / "c")  # not closed, as after an interrupted cell of a notebook
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(2, state(2), {})
    checkpoints.close()
    assert steps_in(tmp_path / "c") == [1, 2]
