"""runtime/cli.py: the garbage collector in a program; engine/test_error_handling.py has the exit statuses."""

import subprocess
import sys

from conftest import ROOT


def test_the_garbage_collector_runs_rarely_and_not_at_exit(tmp_path):
    code = f"""
import atexit, gc, runpy, sys
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1000))  # called last of all
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["main.py", "--config", "none.yaml", "--check"]
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "10000 True"
