"""The plots of a run, as PNG and PDF."""
