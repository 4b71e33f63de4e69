"""The parts of a raw row -> messages, with a record of how its columns were read."""
