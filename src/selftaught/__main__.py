"""`python -m selftaught` is the command `selftaught`."""

from __future__ import annotations

from selftaught.cli import main

if __name__ == "__main__":
    main()
