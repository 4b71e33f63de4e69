"""One optimizer step, without Ray: engine, loss, metrics and collectives."""
