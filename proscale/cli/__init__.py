"""The commands, a module each; :mod:`proscale_cli` imports the one that is called."""
