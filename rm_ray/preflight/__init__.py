"""What a run needs and would do, before anything of the cluster is claimed."""
