"""What runs, seen from outside: counts, traces, metrics, completions."""
