"""Row 9: main.py --help."""

import subprocess

from benchmarks import common


def main() -> None:
    """Time whole processes; the baseline is a Python that does nothing."""
    flags = common.arguments(__doc__, runs=9)
    common.header("main.py --help, whole process")
    command = common.python(common.ROOT / "main.py", "--help")
    works = {
        "python -c pass": lambda: subprocess.run(common.python("-c", "pass"), check=True),
        "main.py --help": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
    }
    common.compare("process", works, flags.runs)


if __name__ == "__main__":
    main()
