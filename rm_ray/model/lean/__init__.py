"""Models whose weights no process holds as a whole: read in parts, and written in parts."""
