"""What every conversion shares: weight maps, streamed tensors, writing and comparing."""
