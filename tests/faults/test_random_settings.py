"""Random settings files and command lines: settings or a short message, within a second, and never a traceback.

200 of each; 100,000 files and 20,000 command lines with `make faults`.
"""

import gc
import importlib
import re
import shlex
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT
from faults.places import IS_WHOLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import Config, effects
from config_file import load_config, settings_text
from runtime import cli
from runtime.errors import UserError

FILES_TRIED, LINES_TRIED = (100_000, 20_000) if IS_WHOLE else (200, 200)
SECONDS = 1.0  # of processor time
CONFIGURED = settings(
    deadline=None,
    derandomize=not IS_WHOLE,
    database=None,
    suppress_health_check=list(HealthCheck),
)
OWN = [path.read_text(encoding="utf-8") for path in (ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml")))]
KEYS = sorted(effects())
NAMES = sorted({name for key in KEYS for name in key.split(".")})
WORDS = re.findall(
    r"\S+",
    r"""
true false null ~ yes no on off y n auto last none all max cpu cuda cuda:7 cuda:300 fp32 bf16 mvtec 0 1 -1 2 32 256 8192
1e-4 1e400 -.inf .nan 0x10 0o7 007 1_000 1:30 0.5 99.9 4294967296 9999999999999999999999 2024-01-02 2024-99-99
2001-12-14t21:59:43.10-05:00 [] {} [32,32] [[0,9,0,9]] {a:1} '' "" 'a' "\0" "\uD800" . .. / ../x /etc a/b a\b ~/x
~nobody $HOME ${NOPE} *.png (a)_ (((( !!python/object/apply:os.system !!python/name:os.system !!binary !!set !!omap
!!timestamp !!int !!float !custom ! && &a *a *b << <<: {<<:*a} --- ... %YAML %TAG | > |- >+ # : - ? , [ ] { } ' " ` @
""",
)
ODD = [
    "\t",
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "\u2028",
    "\x85",
    "é",
    "e\u0301",
    "漢",
    "\U0001f600",
    "٣",
    " ",
    "  ",
    "x" * 300,
]
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=30),
)


def _flow(values):
    """Values in brackets."""
    return st.one_of(
        st.lists(values, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(values, values), max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"
        ),
        st.tuples(st.sampled_from(["&a ", "*a ", "!!set ", "!!binary ", "!x ", "!!str "]), values).map("".join),
    )


VALUES = st.recursive(SCALARS, _flow, max_leaves=8)
SECTIONS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(sorted(Config.model_fields)), SCALARS),
        st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), SCALARS), VALUES), max_size=5),
    ),
    max_size=5,
).map(
    lambda sections: "".join(
        f"{section}:\n" + "".join(f"  {key}: {value}\n" for key, value in keys) for section, keys in sections
    )
)
RIGHT = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=6).map(
    lambda pairs: "".join("{}:\n  {}: {}\n".format(*key.split("."), value) for key, value in dict(pairs).items())
)


@st.composite
def changed(draw):
    """A settings file of the project with a few changes."""
    text = draw(st.sampled_from(OWN))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 10, 200]))
        text = text[:start] + draw(VALUES) + text[end:]
    return text


TEXTS = st.one_of(
    SECTIONS,
    RIGHT,
    changed(),
    st.lists(SCALARS, max_size=20).map(" ".join),
    st.lists(SCALARS, max_size=20).map("\n".join),
)
FILES = st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=300))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("settings") / "own.yaml"


def at_once(action):
    """The result of an action that takes less than a second; the fastest of a few tries: other programs slow it down.

    Without a collection of the garbage of all examples before.
    """
    gc.disable()
    try:
        for _ in range(5):
            start = time.process_time()
            result = action()
            if time.process_time() - start < SECONDS:
                return result
    finally:
        gc.enable()
    raise AssertionError(f"took {time.process_time() - start:.1f} s")


def assert_short(error: object) -> None:
    assert len(str(error)) <= 20_000 and "Traceback" not in str(error), str(error)[:500]


@settings(CONFIGURED, max_examples=FILES_TRIED)
@given(data=FILES)
def test_a_random_settings_file_is_read_or_refused(file, data):
    """What is read is the same after it has been written as a run's config.yaml."""

    def read():
        try:
            config = load_config(file)
            return config, settings_text(file, config)
        except UserError as error:
            return error

    file.write_bytes(data)
    found = at_once(read)
    if isinstance(found, UserError):
        assert_short(found)
        return
    config, written = found
    file.write_text(written, encoding="utf-8")
    assert load_config(file) == config


MODES = "--check --train --threshold --detection --predict --export --watch --feedback"
OF_MODES = "--nominal --recalibrate --learn --output --resume"
SETTINGS, RAY = "--config -cfg --set --help --version", "--ray --gpus_per_job --cpus_per_job --max_retries"
FLAGS = {
    "main": f"{MODES} {OF_MODES} {SETTINGS}",
    "train_all": f"--categories --update_config --force --seeds {RAY} {SETTINGS}",
    "evaluate_checkpoints": "--categories --checkpoints --maskings --registrations --thresholds --force "
    + f"{RAY} {SETTINGS}",
    "check_best_model": f"--categories {SETTINGS}",
    "make_sample": "--out",
}
WORDS_OF_FLAGS = re.findall(r"\S+", "True False config.yaml nowhere tile 700 no post max onnx local nan inf -- -")
VALUES_OF_FLAGS = st.one_of(
    st.sampled_from(WORDS_OF_FLAGS),
    st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
    SCALARS,
).filter(lambda text: "\0" not in text)  # no command line can have it
LINES = st.sampled_from(sorted(FLAGS)).flatmap(
    lambda program: st.tuples(
        st.just(program),
        st.lists(
            st.tuples(st.sampled_from(FLAGS[program].split()), st.lists(VALUES_OF_FLAGS, max_size=2)), max_size=5
        ).map(lambda flags: [word for flag, values in flags for word in (flag, *values)]),
    )
)


@pytest.fixture(scope="module")
def programs():
    """The programs, which read command line and settings, but do nothing then."""
    import main
    import make_sample
    from engine import best_model, evaluate_all, train_all

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "_run", lambda *arguments: 0)
        patch.setattr(train_all, "run", lambda *arguments: 0)
        patch.setattr(evaluate_all, "run", lambda *arguments: 0)
        patch.setattr(best_model, "run", lambda *arguments: Path())
        patch.setattr(make_sample, "make_sample", lambda *arguments: None)
        yield {name: importlib.import_module(name).main for name in FLAGS}


@settings(CONFIGURED, max_examples=LINES_TRIED)
@given(line=LINES)
def test_a_random_command_line_is_taken_or_refused(programs, line):
    program, arguments = line

    def call():
        out, error = StringIO(), StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
            patch.setattr(sys, "argv", [f"{program}.py", *arguments])
            with pytest.raises(SystemExit) as exit_:
                cli.run(programs[program])
        return exit_.value.code, error.getvalue()

    status, error = at_once(call)
    assert status in (0, 2), shlex.join(arguments)
    assert (status == 2) == error.startswith("error: "), error
    assert_short(error)
