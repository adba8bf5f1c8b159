"""All tests run on eight simulated devices, with strict rank promotion; those of `STRICT` with strict dtypes too."""

import gc
import importlib.metadata
import os

# Compilation takes far longer than execution in the tests. A program in one part is compiled with less work in all.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # A third less time to compile. Later versions have no other emitters, and the suite runs on them too.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import jaxtyping
import pytest

# The scripts that record goldens need torch and contain no tests.
collect_ignore = ["goldens"]

# Where neither Optax's Adam nor layers of other libraries run, which promote dtypes.
STRICT = (
    *("convert", "data", "losses", "methods", "models", "test_cka.py", "test_collectives.py", "test_filters.py"),
    *("test_learned_filter.py", "test_spectrum.py", "test_evaluation.py", "test_sharding.py", "test_step.py"),
)

gc.set_threshold(200_000, 100, 100)  # as `lfcc_jax.runtime.collect_garbage_rarely` does

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Shares a compilation cache between workers and the processes that tests start."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(base / "compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """Makes implicit promotion of dtypes an error."""
    parts = request.path.relative_to(request.config.rootpath).parts
    with jax.numpy_dtype_promotion("strict" if set(STRICT) & set(parts) else "standard"):
        yield


@pytest.fixture
def types_unchecked():
    """Disables jaxtyping, so that calls with a wrong type or shape reach the package's own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The directory where the digits are prepared, once for all tests."""
    from lfcc_jax import data

    directory = str(tmp_path_factory.mktemp("tfds"))
    data.open_source("digits", "test", directory)
    return directory


@pytest.fixture(scope="session")
def tiny(data_dir):
    """A config that trains in seconds: 2 epochs of 4 steps, on two devices."""

    def make(**changes):
        config = {
            "data": {"name": "digits", "train_split": "train[:32]", "test_split": "test[:20]", "data_dir": data_dir},
            "student": {"name": "resnet_pico", "widths": (4, 4, 8, 8), "dropout": 0.1},
            "losses": {"cross_entropy": {"label_smoothing": 0.1}},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 1.0},
            "epochs": 2,
            "batch_size": 8,
            "mesh": {"data": 2},
            "log_every_steps": 2,
        }
        config["data"]["augmentation"] = {"padding": 1}
        return config | changes

    return make


@pytest.fixture(scope="session")
def teacher_dir(data_dir, tmp_path_factory):
    """The work directory of a small ViT with dropout, trained for one epoch."""
    from lfcc_jax.train import train_and_evaluate

    workdir = tmp_path_factory.mktemp("teacher")
    config = {
        "data": {"name": "digits", "train_split": "train[:32]", "test_split": "test[:20]", "data_dir": data_dir},
        "student": {"name": "vit_pico", "width": 12, "depth": 4, "dropout": 0.1, "drop_path": 0.1},
        "losses": {"cross_entropy": {}},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "epochs": 1,
        "batch_size": 8,
        "mesh": {"data": 2},
    }
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def distilled(tiny, teacher_dir):
    """A config that distills that ViT into a small ResNet with KD and LFCC."""

    def make(**changes):
        config = tiny(
            teacher={"name": "vit_pico", "width": 12, "depth": 4, "checkpoint": str(teacher_dir)},
            losses={
                "cross_entropy": {},
                "kd": {"temperature": 2.0},
                "lfcc": {"width": 8, "stages": ("stage2", "stage4"), "grids": (1, 2), "weight": 0.5},
            },
        )
        return config | changes

    return make
