"""The output folder on disk: records, locks, the manifest, and where results come from."""
