"""The commands: the file name is the command's name, and ``command(arguments)`` runs it."""
