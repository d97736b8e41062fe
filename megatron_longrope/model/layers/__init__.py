"""Parts of a transformer layer whose memory stays small at long context."""
