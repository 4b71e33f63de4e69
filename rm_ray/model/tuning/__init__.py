"""Training a part of a model: adapters, or its last layers and head."""
