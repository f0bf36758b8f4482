"""The workers that train: they pull jobs, run programs under limits, and report events."""
