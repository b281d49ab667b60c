"""Metrics, bootstrap, thresholds and comparisons: functions of arrays."""
