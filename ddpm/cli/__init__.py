"""The commands. ``app`` is what they share; each other module is one short main."""
