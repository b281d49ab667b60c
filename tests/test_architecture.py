"""Imports: requirements.txt, the order of the rooms, and the state of the process after an import."""

import ast
import re
import subprocess
import sys
from collections import Counter

from conftest import ROOT

DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "ruamel": "ruamel.yaml",
}
PURE = ("model.py", "loss.py", "perlin.py", "evaluation/*.py")  # of the project they import only their neighbours
FLOORS = (  # a file imports from its own floor's room or those below
    ("main", "train_all", "evaluate_checkpoints", "check_best_model", "make_sample"),
    ("engine",),
    ("training",),
    ("reporting",),
    ("inference",),
    ("data_loader",),
    ("synthesis", "registration"),
    ("data",),
    ("config_file",),
    ("config",),
    ("config_types",),
    ("evaluation", "model", "loss", "perlin", "runtime"),
)


EXPORTING = ("export.py", "exported.py", "quantization.py")  # import the packages of --export


def sources():
    paths = (path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in ("tests", "benchmarks"))
    return [path for path in paths if not path.relative_to(ROOT).parts[0].startswith(".")]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """Modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def rooms_used(path):
    return {name.split(".")[0] for name in imports(path)}


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_requirements_list_exactly_the_imported_packages():
    own = {room_of(path) for path in sources()}
    serving = [path for path in sources() if path.name == "serve.py"]
    exporting = [path for path in sources() if room_of(path) == "deploy" or path.name in EXPORTING]
    exporting = [path for path in exporting if path not in serving]
    on_ray = [path for path in sources() if path.name == "ray_jobs.py"]
    of_browser = [path for path in sources() if path.name == "screenshots.py"]
    plain = [path for path in sources() if path not in exporting + serving + on_ray + of_browser]
    for files, lists in (
        (plain, ["requirements.txt"]),
        (plain + exporting, ["requirements.txt", "requirements-export.txt"]),
        (plain + on_ray, ["requirements.txt", "requirements-cluster.txt"]),
    ):
        used = set().union(*map(rooms_used, files)) - own - set(sys.stdlib_module_names)
        lines = [line for name in lists for line in (ROOT / name).read_text().splitlines() if line[:2] != "-r"]
        listed = {re.split("[=<>]", line)[0] for line in lines} - {"onnxscript"}  # torch's exporter imports it
        assert {DISTRIBUTIONS.get(name, name) for name in used} == listed
    deployed = {path.stem for path in sources() if room_of(path) == "deploy"}
    assert set().union(*map(rooms_used, serving)) - deployed - set(sys.stdlib_module_names) == {"ray", "starlette"}
    assert "ray[serve]>=" in (ROOT / "deploy/requirements-serve.txt").read_text()  # which brings starlette
    developing = (ROOT / "requirements-dev.txt").read_text()
    for name in set().union(*map(rooms_used, of_browser)) - own - set(sys.stdlib_module_names):
        assert re.search(rf"^{name}>=", developing, re.MULTILINE)


def test_the_pure_files_import_nothing_of_the_project():
    own = {room_of(path) for path in sources()}
    for path in (path for pattern in PURE for path in ROOT.glob(pattern)):
        assert not rooms_used(path) & own - {room_of(path)}, path
        assert room_of(path) != "evaluation" or "torch" not in rooms_used(path), path


def test_imports_run_downward():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in sources():
        if room_of(path) not in ("images", "docs", "deploy"):
            for name in rooms_used(path) & floor.keys() - {room_of(path)}:
                assert floor[room_of(path)] < floor[name], f"{path} imports {name}"


def test_importing_changes_nothing_in_the_process():
    """No thread setting, log level, table or allocator before setup() is called."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources() if room_of(path) != "images"]
    done = run(f"""
import ctypes, importlib, cv2, numpy
used, load = [], ctypes.CDLL
class Library(load):
    def __getattr__(self, name):
        used.append(name)
        return super().__getattr__(name)
ctypes.CDLL = Library
def state():
    return cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), hasattr(numpy, "sctypes"), used.count("mallopt")
before = state()
for name in {names}:
    importlib.import_module(name.removesuffix(".__init__"))
assert state() == before, (before, state())
from runtime.device import setup
setup()
assert state() == (1, 0, True, 1), state()
""")
    assert done.returncode == 0, done.stderr


def test_scikit_learn_is_imported_for_metrics_only():
    """Its import takes a second, which the start of a training and of thresholds should not."""
    look = "print('sklearn' in sys.modules)"
    done = run(f"import sys, engine.train, engine.threshold; {look}; import engine.detection; {look}")
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_files_and_rooms_stay_small():
    """At most 350 lines a file, twelve files a room; the method below 800 lines."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: count for path, count in lines.items() if count > 350} == {}
    rooms = Counter(path.parent for path in lines if path.parent != ROOT and path.name != "__init__.py")
    assert {room: count for room, count in rooms.items() if count > 12} == {}
    method = ("perlin.py", "synthesis.py", "data_loader.py", "model.py", "loss.py")
    assert sum(lines[ROOT / name] for name in method) < 800
