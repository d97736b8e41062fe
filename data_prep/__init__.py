"""Makes packed token datasets from text: reads, tokenizes, filters, packs and writes documents."""
