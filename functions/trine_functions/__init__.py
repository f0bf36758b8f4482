"""The research functions: user code in every respect, installed with Trine."""
