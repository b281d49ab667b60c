"""Draw networks.png beside this file: a diagram of the two sub-networks and the data between them."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

ENCODER, DECODER, DATA, LINE = "#0072B2", "#D55E00", "#F2F2F2", "#333333"
UNIT = 0.30  # width of a block, in units of the axes


def block(axes, x: float, level: int, y: float, color: str, label: str) -> tuple[float, float]:
    """Draw a block that is smaller the deeper its level. Returns the x of its center, and its height."""
    height = 2.6 / 2 ** (level * 0.62)
    axes.add_patch(Rectangle((x, y - height / 2), UNIT, height, color=color, alpha=0.85, linewidth=0))
    axes.text(x + UNIT / 2, y - height / 2 - 0.12, label, ha="center", va="top", fontsize=8, color=LINE)
    return x + UNIT / 2, height


def box(axes, x: float, y: float, text: str, width: float = 1.25, height: float = 0.9) -> None:
    """Draw a labelled box for data."""
    corner = (x, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.03", facecolor=DATA, edgecolor=LINE))
    axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=9.5)


def arrow(axes, start, end, style: str = "-|>", color: str = LINE, bend: float = 0.0, dashed: bool = False) -> None:
    """Draw an arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, mutation_scale=11, color=color, linewidth=1.2,
            linestyle="--" if dashed else "-", connectionstyle=f"arc3,rad={bend}",
        )
    )  # fmt: skip


def network(axes, x: float, y: float, encoder: list[str], decoder: list[str], has_skips: bool) -> float:
    """Draw encoder and decoder blocks. Returns the x of their right end."""
    step, tops = UNIT + 0.24, []
    for level, label in enumerate(encoder):
        center, height = block(axes, x + level * step, level, y, ENCODER, label)
        tops.append((center, y + height / 2))
    for i, label in enumerate(decoder):
        level = len(encoder) - 2 - i
        center, height = block(axes, x + (len(encoder) + i) * step, level, y, DECODER, label)
        if has_skips:
            arrow(axes, tops[level], (center, y + height / 2), bend=-0.2, color="#777777", dashed=True)
    return x + (len(encoder) + len(decoder)) * step - 0.24


def main() -> None:
    """Write the diagram."""
    figure = Figure(figsize=(13.4, 4.2), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 16.75), ylim=(-2.35, 2.85))
    axes.axis("off")
    box(axes, 0.15, 0, "image\n(training: with a\nsynthetic anomaly)", 1.75, 1.15)
    arrow(axes, (1.95, 0), (2.3, 0))
    end = network(axes, 2.35, 0, ["b", "2b", "4b", "8b", "8b"], ["4b", "2b", "b", "b"], False)
    axes.text((2.35 + end) / 2, 2.3, "reconstructive network\nb = base_width = 128", ha="center", fontsize=10.5)
    arrow(axes, (end + 0.05, 0), (end + 0.4, 0))
    box(axes, end + 0.45, 0, "reconstruction", 1.5, 0.7)
    middle = end + 2.05
    arrow(axes, (middle - 0.05, 0), (middle + 0.3, 0))
    axes.plot([1.0, 1.0, middle + 0.12, middle + 0.12], [-0.63, -1.85, -1.85, -0.3], color=LINE, linewidth=1.2)
    arrow(axes, (middle + 0.12, -0.3), (middle + 0.3, -0.12))
    axes.text((1.0 + middle) / 2, -2.2, "image beside its reconstruction: 6 channels", ha="center", fontsize=9.5)
    start = middle + 0.35
    decoder = ["8c", "4c", "2c", "c", "c"]
    last = network(axes, start, 0, ["c", "2c", "4c", "8c", "8c", "8c"], decoder, True)
    axes.text((start + last) / 2, 2.3, "discriminative network\nc = base_channels = 64", ha="center", fontsize=10.5)
    arrow(axes, (last + 0.05, 0), (last + 0.4, 0))
    box(axes, last + 0.45, 0, "anomaly\nmap", 0.95, 0.8)
    legend = [
        (ENCODER, "two 3x3 conv-BN-ReLU, then 2x2 max pool"),
        (DECODER, "upsample x2, conv-BN-ReLU, then two more"),
    ]
    for i, (color, text) in enumerate(legend):
        axes.add_patch(Rectangle((start + 0.1, -1.78 - 0.33 * i), 0.2, 0.2, color=color, alpha=0.85, linewidth=0))
        axes.text(start + 0.4, -1.68 - 0.33 * i, text, va="center", fontsize=9)
    arrow(axes, (start + 4.3, -1.68), (start + 4.75, -1.68), color="#777777", dashed=True)
    axes.text(start + 4.85, -1.68, "skip", va="center", fontsize=9)
    figure.savefig(Path(__file__).parent / "networks.png")


if __name__ == "__main__":
    main()
