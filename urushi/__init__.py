"""The front door: the command line, nothing else. `urushi --help`."""
