"""From text to packed token datasets: readers, tokenizer training, filtering, packing, writing."""
