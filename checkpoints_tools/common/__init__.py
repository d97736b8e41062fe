"""Parts that all conversions share: weight maps, streamed tensors, writing and comparing."""
