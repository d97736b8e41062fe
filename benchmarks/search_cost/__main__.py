"""Measures perplexity against evaluated tokens, for every searcher.

python -m benchmarks.search_cost run …        one search
python -m benchmarks.search_cost compare …    what all searches reached at which cost
"""

from __future__ import annotations

from benchmarks.search_cost.command import main

if __name__ == "__main__":
    main()
