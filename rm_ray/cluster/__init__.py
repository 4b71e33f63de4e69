"""The Ray cluster of a command: resources, placement, process group, failures."""
