"""Perplexity against evaluated tokens, for every searcher: `python -m benchmarks.search_cost run …
| compare …`."""

from __future__ import annotations

from benchmarks.search_cost.command import main

if __name__ == "__main__":
    main()
