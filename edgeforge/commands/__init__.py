"""What each command shows, one file per command that shows more than a line. `edgeforge.cli` calls these."""
