"""Colors of all figures: Okabe and Ito's palette, which color-blind people can distinguish."""

NOMINAL = "#0072B2"
ANOMALOUS = "#D55E00"
OPERATING_POINT = "#000000"
CHANCE = "#777777"
LEVELS = {"image": "#CC79A7", "pixel": "#009E73"}
TRUTH, PREDICTION = "#56B4E9", "#E69F00"
