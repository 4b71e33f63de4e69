"""The columns of a row that say which responses are better -> a comparison group."""
