"""Documentation: Python blocks run, commands parse, links resolve, and repository addresses agree."""

import ast
import functools
import re
import shlex
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from lfcc_jax import models
from lfcc_jax.config_files import load_config
from lfcc_jax.export import main as export
from lfcc_jax.methods import TeacherOutput
from lfcc_jax.training.config import read_config
from lfcc_jax.training.distillation import check_blocks

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [
    *PAGES,
    *(path for ext in ("py", "sh") for d in ("configs", "experiments") for path in (ROOT / d).rglob(f"*.{ext}")),
]
WITH_CONFIG = {"config", "workdir", "distributed", "help"}  # the flags of lfcc_jax.main


def relative(path):
    return str(path.relative_to(ROOT))


def blocks(text, *languages):
    """Returns the fenced blocks of a page in one of these languages, including those inside lists."""
    matches = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [block for _, language, block in matches if language in languages]


def command_lines(text):
    """Yields every command of a page: lines of shell blocks and of blocks without a language, and code spans."""
    fenced = [line for block in blocks(text, "", "sh", "bash") for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    for line in fenced + [
        span for span in spans if re.match(r"(\w+=\S+ )*(python|pytest|make|srun|experiments/)\b", span)
    ]:
        yield from filter(None, (part.strip() for part in re.split(r"&&|(?:^|\s)#.*", line)))


def module_path(module):
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__main__.py") if p.exists()), None)


@functools.cache
def flags_of(path):
    """Returns the flags that a command defines, from its source, because some commands import torch."""
    source = path.read_text()
    names = set(re.findall(r'add_argument\(\s*"--([\w-]+)"', source))
    names |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
    if "steps.add_options(" in source:
        names |= flags_of(ROOT / "experiments" / "bench" / "steps.py") - {"minutes", "out"}
    return names | (WITH_CONFIG if path == ROOT / "lfcc_jax" / "main.py" or "cli.run(" in source else {"help"})


def has_placeholder(value):
    return "..." in value


def check_config(arguments):
    """Loads the config of a command and applies its changes, without reading data or networks."""
    values = dict(re.findall(r"^--(config[\w.]*)(?:=(.*))?$", "\n".join(arguments), re.MULTILINE))
    values |= dict.fromkeys(re.findall(r"^--(config[\w.]*)=$", "\n".join(arguments), re.MULTILINE), "''")
    name = values.pop("config", None)
    if name is None or has_placeholder(name):
        return None
    if name.startswith(":"):
        name = f"lfcc_jax/default_config.py{name}"
    config = load_config(name)
    for key, text in values.items():
        *parents, last = key.split(".")[1:]
        block = config
        for parent in parents:
            if parent not in block:
                block[parent] = ConfigDict()
            block = block[parent]
        try:
            value = ast.literal_eval(text or "True")
        except (SyntaxError, ValueError):
            value = text
        block[last] = value
    run = read_config(config)
    check_blocks(run)
    return run


def check_command(line):
    """Raises unless the programs, files, flags, configs and methods that a command line names exist."""
    words = shlex.split(line)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    arguments = words[1:]
    if words[0] == "srun":
        words, arguments = words[1:], words[2:]
    if words[0] == "python":
        assert words[1] == "-m", line
        module, arguments = words[2], words[3:]
        path = module_path(module)
        assert path, f"{module}: no such module in `{line}`"
        used = [
            re.match(r"--([\w-]+)", word)[1] for word in arguments if word.startswith("--") and "--config." not in word
        ]
        assert set(used) <= flags_of(path), f"unknown flag in `{line}`"
        if module == "lfcc_jax.convert" and "--model" in arguments:
            assert models.full_name(arguments[arguments.index("--model") + 1]) in models.list_models(), line
        if module == "experiments.compare":
            check_methods(arguments)
        if module == "experiments.compare.report":
            assert all(list(ROOT.glob(pattern)) for pattern in arguments), line
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), line
        paths = [word for name in arguments if "=" in name for word in name.partition("=")[2].split()]
        assert all((ROOT / path).exists() for path in paths if "/" in path), line
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in arguments if not word.startswith("-")), line
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
        for extra in re.findall(r'"?\.\[([\w,]+)\]', line):
            assert set(extra.split(",")) <= set(extras["optional-dependencies"]), line
    elif "/" in words[0]:
        assert (ROOT / words[0]).exists(), line
    else:
        assert words[0] in ("git", "cd"), f"`{line}`: no check for this command"
    check_config(arguments)


def check_methods(arguments):
    values = dict(re.findall(r"^--(config|methods)=(\S+)$", "\n".join(arguments), re.MULTILINE))
    if "methods" in values and not has_placeholder(values["config"]):
        file, _, argument = values["config"].partition(":")
        for method in values["methods"].split(","):
            if not re.search(rf"\b{'METHODS' if method == 'all' else method.upper()}\b", (ROOT / file).read_text()):
                load_config(f"{file}:{argument},method={method}")


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_commands_of_a_page_name_modules_configs_and_flags_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in command_lines(path.read_text()):
        check_command(line)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python -m lfcc_jax.mian --config=configs/digits.py", "no such module"),
        ("python -m lfcc_jax.main --confg=configs/digits.py", "unknown flag"),
        ("python -m lfcc_jax.main --config=configs/digit.py", "No such file"),
        ("python -m lfcc_jax.main --config=configs/digits.py:method=kdd", "method"),
        ("python -m lfcc_jax.main --config=configs/digits.py --config.losses.kd.temprature=1", "temprature"),
        ("python -m experiments.compare --config=configs/digits.py --methods=kd,lfc", "lfc"),
        ("python -m lfcc_jax.convert --model resnet17 --checkpoint a --out b", "resnet17"),
        ("python -m lfcc_jax.convert --modle resnet18", "unknown flag"),
        ("make tests", "make tests"),
        ("pytest tests/configs/test_benchmrk.py", "test_benchmrk"),
        ('pip install ".[trian]"', "trian"),
        ("experiments/tpu/wm.sh NAME", "wm.sh"),
    ],
)
def test_check_command_rejects_a_misspelled_command(line, error, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception, match=re.escape(error)):
        check_command(line)


def run_python_blocks(path):
    """Runs the Python blocks of a page in order. Returns their namespace, and the value of `loss` after each block."""
    namespace, losses = {"__name__": path.stem}, []
    for block in blocks(path.read_text(), "python"):
        exec(compile(block, str(path), "exec"), namespace)
        losses.append(namespace.get("loss"))
    return namespace, losses


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_python_blocks_of_a_page_run_in_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = relative(path)
    if name == "docs/deploy.md":
        write_exports()
    namespace, losses = run_python_blocks(path)
    if name in ("README.md", "docs/loss.md"):
        assert losses[0].shape == (8,)
        assert float(losses[0].mean()) == pytest.approx(2.079, abs=1e-3)  # as the block says
    if name == "docs/loss.md":
        assert losses[1].shape == ()
        assert namespace["matrix"].shape == (4, 14)
        assert namespace["code"].shape == (8, 4, 4, 256)
        assert namespace["smooth"].shape == (8, 14, 14, 256)
    elif name == "docs/training.md":
        assert read_config(namespace["get_config"]()).losses["lfcc"] == {"weight": 1.0}
    elif name == "docs/networks.md":
        info = namespace["model"].feature_info()["stage3"]
        assert (info.height, info.width, info.channels) == (8, 8, 96)
        assert namespace["features"]["stage3"].shape == (2, 8, 8, 96)
    elif name == "docs/your_network.md":
        assert (tmp_path / "runs" / "own" / "summary.json").exists()
        info = namespace["network"].feature_info()["stage2"]
        assert (info.height, info.width, info.channels) == (4, 4, 16)
    elif name == "docs/deploy.md":
        assert namespace["about"]["image_size"] == "8"
        assert namespace["logits"].shape == (1, 10)
    elif name == "docs/methods.md":
        check_method(namespace["FeatureMSE"]())
    elif name == "CONTRIBUTING.md":
        check_contributing(namespace)


def write_exports():
    """Writes the files that the page on deployment loads."""
    overrides = {"widths": (4, 4, 8, 8), "image_channels": 1, "mean": (0.5,), "std": (0.5,)}
    network = models.create("resnet_pico", 10, 8, **overrides)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), network.variable_shapes())
    about = {"name": "resnet_pico", "num_classes": 10, "image_size": 8, "overrides": overrides}
    models.save("runs/lfcc", variables, about)
    for kind in ("onnx", "stablehlo"):
        export(["runs/lfcc", f"--format={kind}", f"--out=student.{kind}"])


def check_method(method):
    """Checks that a method returns a loss per image for maps of different sizes."""
    student = models.Output(jnp.zeros((3, 5)), {"stage4": jnp.ones((3, 2, 2, 4))})
    teacher = TeacherOutput(jnp.zeros((3, 5)), {"stage4": jnp.ones((3, 4, 4, 6))}, {})
    loss, _ = method.init_with_output(jax.random.key(0), {"label": jnp.arange(3)}, student, teacher)
    assert loss.shape == (3,)
    assert (loss > 0).all()


def check_contributing(namespace):
    network = namespace["PatchMLP"](num_classes=10, image_size=8, width=24)
    assert network.feature_info()["stage4"] == (2, 2, 24)
    source = namespace["source"]
    assert (len(source.examples), source.num_classes, source.image_size, source.image_channels) == (32, 4, 8, 1)
    image = jax.random.uniform(jax.random.key(0), (4, 4, 3), maxval=255)
    gray = namespace["random_gray"](jax.random.key(1), image, 1.0)
    assert gray.shape == image.shape
    assert jnp.ptp(gray, axis=-1).max() == 0
    assert (namespace["random_gray"](jax.random.key(1), image, 0.0) == image).all()


def test_pages_with_python_blocks_are_all_known():
    assert [relative(path) for path in PAGES if "```python" in path.read_text()] == [
        *("README.md", "CONTRIBUTING.md", "docs/deploy.md", "docs/loss.md", "docs/methods.md", "docs/networks.md"),
        *("docs/training.md", "docs/your_network.md"),
    ]


def test_readme_has_at_most_160_lines():
    assert len(README.read_text().splitlines()) <= 160


def anchors(path):
    """Returns the anchors that GitHub generates for the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_links_and_named_files_exist(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", text) if path.suffix == ".md" else []
    missing = [name for name, _ in links if not (path.parent / name).exists()]
    pages = [(path.parent / name if name else path, anchor) for name, anchor in links if anchor]
    missing += [f"{page.name}#{anchor}" for page, anchor in pages if page.exists() and anchor not in anchors(page)]
    named = set(
        re.findall(r"(?<![\w/])(?:configs|experiments|lfcc_jax|docs|tests)/[\w/]+\.(?:py|md|png|sh|ipynb)\b", text)
    )
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_readme_links_every_page_of_docs():
    links = set(re.findall(r"\]\((docs/\w+\.md)", README.read_text()))
    assert links == {relative(path) for path in (ROOT / "docs").glob("*.md")}


def test_repository_addresses_match_pyproject():
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    path = repository.removeprefix("https://github.com/")
    for name in ("README.md", "docs/loss.md", "experiments/lfcc_colab.ipynb"):
        text = (ROOT / name).read_text()
        addresses = re.findall(r"(?:git\+|git clone )(https://[^\"'\s\\]+)", text)
        assert set(addresses) == {repository}
        assert set(re.findall(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", text)) <= {path}


def test_work_directories_have_the_same_config_in_all_pages():
    text = "\n".join(path.read_text() for path in PAGES).replace("\\\n", "")
    trained = {}
    for module, arguments in re.findall(r"python -m (lfcc_jax\.main|experiments\.compare) ([^`\n]*)", text):
        values = dict(re.findall(r"--(config|workdir|methods|pairs)=(\S+)", arguments))
        if module == "lfcc_jax.main" and "workdir" in values:
            assert trained.setdefault(values["workdir"], values["config"]) == values["config"]
    written = set(trained) | set(re.findall(r"--out[ =](\S+)", text))
    read = {name for name in re.findall(r"checkpoint[= ](\S+)", text) if name.startswith("runs/")}
    assert read <= written
