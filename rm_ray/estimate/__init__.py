"""Memory, traffic and time of a training, before there is one."""
