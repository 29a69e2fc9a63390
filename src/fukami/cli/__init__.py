"""The command line: one file per command, whose ``command(arguments)`` runs it."""
