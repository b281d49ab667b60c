"""The programs of deploy/ in C++, built."""

import shutil
import subprocess
from pathlib import Path

import openvino
import pytest
from conftest import ROOT


def build(folder: Path) -> Path:
    """Build detect and cases.cpp in a folder; the folder. Skips the test where there is no compiler."""
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("no compiler here")
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
    return folder
