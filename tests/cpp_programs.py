"""The programs of deploy/ in C++, built once in a session."""

import shutil
import subprocess
from pathlib import Path

import openvino
import pytest
from conftest import ROOT
from filelock import FileLock


@pytest.fixture(scope="session")
def built(shared_folder):
    """The folder of the programs detect and cases. Skips the test where there is no compiler."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no compiler here")
    folder = shared_folder / "cpp_programs"
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").is_file():
            build(folder)
            (folder / "finished").touch()
    return folder


def build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    source, runtime = folder / "source", Path(openvino.__file__).parent / "cmake"
    shutil.copytree(ROOT / "deploy", source)
    shutil.copy(ROOT / "tests/deploy/cases.cpp", source)
    with (source / "CMakeLists.txt").open("a") as file:
        file.write(
            "add_executable(cases cases.cpp)\ntarget_link_libraries(cases PRIVATE openvino::runtime ${OpenCV_LIBS})\n"
        )
    configure = ["cmake", "-S", source, "-B", folder, f"-DOpenVINO_DIR={runtime}"]
    configured = subprocess.run(configure, capture_output=True, text=True)
    if "OpenCV" in configured.stderr:
        pytest.skip("OpenCV's headers are not here")
    assert configured.returncode == 0, configured.stderr
    done = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
