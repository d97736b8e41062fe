"""The files of a run directory, one schema each, free of torch: everybody imports them."""
