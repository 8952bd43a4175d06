"""`python -m m2bert`: the command line, for where its script is not on the path.

Test: tests/cli/test_cli.py.
"""

from __future__ import annotations

from m2bert.cli import main

if __name__ == "__main__":
    main()
