"""Row 2: a training step of the full-size networks, 256 x 256, batch 2."""

from benchmarks import common
from benchmarks.training import compare_steps


def main() -> None:
    """Time steps on this machine's device."""
    flags = common.arguments(__doc__, runs=5, size=256, batch=2)
    compare_steps(128, 64, flags.size, flags.batch, flags.runs)


if __name__ == "__main__":
    main()
