"""``python -m trine`` is the command ``trine``."""

from trine.cli import main

if __name__ == "__main__":
    main()
