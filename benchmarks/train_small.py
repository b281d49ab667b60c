"""Row 3: a training step of small networks (base_width 32, base_channels 16), 128 x 128, batch 8."""

from benchmarks import common
from benchmarks.training import compare_steps


def main() -> None:
    """Time steps on this machine's device."""
    flags = common.arguments(__doc__, runs=9, size=128, batch=8)
    compare_steps(32, 16, flags.size, flags.batch, flags.runs)


if __name__ == "__main__":
    main()
