"""What commands print: tables, progress, the stages of a run."""
