"""Where batches come from: orders of samples, streams, loaders, and the contract between."""
